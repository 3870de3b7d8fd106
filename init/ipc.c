/*
 * ipc.c - what programs leave that is no process and no file: System V objects.
 *
 * Shared memory outlives everybody who had it. Left alone it would be in the next run's way, and where
 * it fills the session's memory no later program could start. They are all of this sandbox: it has
 * an IPC namespace of its own, in which nobody but its programs made any.
 */
#define _GNU_SOURCE
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>

#include "init.h"

union argument {
	int value;
	struct semid_ds *status;
	struct seminfo *info;
};

/* The calls differ only in their names. Each asks for the highest index in use, and then takes
 * index for index: *_STAT_ANY gives the id also of what nobody may read. */

static void remove_memory(void)
{
	struct shm_info info = { 0 };
	struct shmid_ds status;
	const int last = shmctl(0, SHM_INFO, (struct shmid_ds *)(void *)&info);

	for (int i = 0; info.used_ids && i <= last; i++) {
		int id = shmctl(i, SHM_STAT_ANY, &status);
		if (id >= 0)
			shmctl(id, IPC_RMID, NULL);
	}
}

static void remove_semaphores(void)
{
	struct seminfo info = { 0 };
	struct semid_ds status;
	const int last = semctl(0, 0, SEM_INFO, (union argument){ .info = &info });

	for (int i = 0; info.semusz && i <= last; i++) {
		int id = semctl(i, 0, SEM_STAT_ANY, (union argument){ .status = &status });
		if (id >= 0)
			semctl(id, 0, IPC_RMID);
	}
}

static void remove_queues(void)
{
	struct msginfo info = { 0 };
	struct msqid_ds status;
	const int last = msgctl(0, MSG_INFO, (struct msqid_ds *)(void *)&info);

	for (int i = 0; info.msgpool && i <= last; i++) {
		int id = msgctl(i, MSG_STAT_ANY, &status);
		if (id >= 0)
			msgctl(id, IPC_RMID, NULL);
	}
}

void ipc_remove_all(void)
{
	remove_memory();
	remove_semaphores();
	remove_queues();
}
