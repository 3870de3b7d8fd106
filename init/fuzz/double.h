/* double.h - what the fuzzer may ask of the doubles in process_double.c. */
#ifndef RETORT_FUZZ_DOUBLE_H
#define RETORT_FUZZ_DOUBLE_H

#include <stdbool.h>
#include <sys/types.h>

void double_reset(void);			/* no process exists */
void double_exec(pid_t pid);			/* its end of the socketpair closes, as in execve */
void double_exit(pid_t pid, int status);	/* it becomes a zombie */
bool double_is_alive(pid_t pid);

#endif
