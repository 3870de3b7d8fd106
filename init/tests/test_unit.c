/*
 * test_unit.c - what can be tested of init without running it: parsing, records, paths.
 *
 * One function per claim; a failed claim names itself and its line, and the others still run.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../init.h"

static int failures;

#define expect(claim) do { if (!(claim)) { failures++; \
	fprintf(stderr, "%s:%d: %s: not so: %s\n", __FILE__, __LINE__, __func__, #claim); } } while (0)

/* step.c answers requests; nobody asks here. */
void answer(struct init *in, const void *message, size_t length, const int *fds, int fd_count)
{
	(void)in, (void)message, (void)length, (void)fds, (void)fd_count;
}

void answer_done(struct init *in, uint32_t id, uint32_t count)
{
	(void)in, (void)id, (void)count;
}

void answer_failed(struct init *in, uint32_t id, uint32_t phase, int error)
{
	(void)in, (void)id, (void)phase, (void)error;
}

/* ---- cursor ---- */

static void strings_are_taken_one_by_one(void)
{
	struct cursor from = { .at = "ab\0\0c", .left = 6 };
	expect(!strcmp(take_string(&from), "ab"));
	expect(!strcmp(take_string(&from), ""));
	expect(!strcmp(take_string(&from), "c"));
	expect(is_consumed(&from));
	expect(!take_string(&from) && from.failed);
}

static void string_without_end_is_a_mistake(void)
{
	struct cursor from = { .at = "abc", .left = 3 };
	expect(!take_string(&from));
	expect(!is_consumed(&from));
}

static void after_a_mistake_nothing_is_taken(void)
{
	struct cursor from = { .at = "abc\0def", .left = 8 };
	expect(!take_bytes(&from, 9));
	expect(!take_bytes(&from, 1) && !take_string(&from) && !is_consumed(&from));
	from = (struct cursor){ .at = "abc", .left = 3 };
	expect(!take_bytes(&from, SIZE_MAX));
}

static void nothing_can_be_taken_from_nothing(void)
{
	struct cursor from = { .at = "", .left = 0 };
	expect(take_bytes(&from, 0) && is_consumed(&from));
	expect(!take_string(&from));
}

/* ---- EXEC ---- */

struct message {
	struct retort_exec head;
	char rest[256];
};

static size_t exec_message(struct message *message, const char *rest, size_t length)
{
	*message = (struct message){ .head = {
		.header = { RETORT_EXEC, 1 }, .number = 5, .limit_count = 1, .tag_length = 3,
		.argument_count = 2, .environment_count = 1 } };
	memcpy(message->rest + sizeof(struct retort_limit), rest, length);
	return sizeof(message->head) + sizeof(struct retort_limit) + length;
}

#define REST "t\0g/cwd\0arg0\0arg1\0A=1"

static void exec_is_taken_apart(void)
{
	struct message message;
	struct exec_request exec;
	size_t length = exec_message(&message, REST, sizeof(REST));
	expect(parse_exec(&message, length, 3, &exec));
	expect(!memcmp(exec.tag, "t\0g", 3) && !strcmp(exec.cwd, "/cwd"));
	expect(!strcmp(take_string(&exec.arguments), "arg0"));
	expect(!strcmp(take_string(&exec.arguments), "arg1"));
	expect(!strcmp(take_string(&exec.arguments), "A=1"));
	expect(is_consumed(&exec.arguments));
}

static void exec_of_any_other_length_is_refused(void)
{
	struct message message;
	struct exec_request exec;
	size_t length = exec_message(&message, REST, sizeof(REST));
	for (size_t other = 0; other < sizeof(message); other++)
		expect(parse_exec(&message, other, 3, &exec) == (other == length));
}

static void exec_needs_three_to_six_descriptors(void)
{
	struct message message;
	struct exec_request exec;
	size_t length = exec_message(&message, REST, sizeof(REST));
	for (int count = 0; count < 10; count++)
		expect(parse_exec(&message, length, count, &exec) == (count >= 3 && count <= 6));
}

static void exec_with_absurd_counts_is_refused(void)
{
	struct message message;
	struct exec_request exec;
	const uint32_t absurd[] = { 4097, 65536, 0x7fffffff, 0x80000000, 0xffffffff };
	for (size_t i = 0; i < sizeof(absurd) / sizeof(*absurd); i++)
		for (int field = 0; field < 4; field++) {
			size_t length = exec_message(&message, REST, sizeof(REST));
			(&message.head.limit_count)[field] = absurd[i];
			expect(!parse_exec(&message, length, 3, &exec));
		}
}

/* ---- records ---- */

static void every_record_is_found_until_it_is_freed(void)
{
	struct init *in = calloc(1, sizeof(*in));
	for (int i = 0; i < RETORT_STEPS_MAX; i++)
		step_init(&in->steps[i]);
	for (uint64_t number = 1; number <= RETORT_STEPS_MAX; number++) {
		struct step *step = step_new(in);
		expect(step && step->sock == -1 && step->held[0] == -1);
		step->state = RETORT_STATE_RUNNING;
		step->number = number;
		step->pid = 100 + (pid_t)number;
	}
	expect(!step_new(in));
	expect(step_find(in, 16) && !step_find(in, 17) && !step_find(in, 0));
	expect(step_of_pid(in, 105) == step_find(in, 5));
	step_find(in, 5)->state = RETORT_STATE_ENDED;
	expect(!step_of_pid(in, 105));	/* reaped: the number may be somebody else's */
	step_free(step_find(in, 5));
	expect(!step_find(in, 5) && step_new(in));
	free(in);
}

/* ---- descriptors ---- */

static void taken_descriptors_stay_open(void)
{
	struct descriptors all = { .count = 2, .fd = { dup(0), dup(0) } };
	int kept = take_descriptor(&all, 1), closed = all.fd[0];
	expect(take_descriptor(&all, 2) == -1);
	close_descriptors(&all);
	expect(fcntl(closed, F_GETFD) < 0 && fcntl(kept, F_GETFD) >= 0);
	errno = EXDEV;
	close_descriptor(&kept);
	expect(kept == -1 && errno == EXDEV);
}

/* ---- paths ---- */

static char home[] = "/tmp/retort-unit-XXXXXX";

static int error_of(const struct init *in, const char *path, int flags, uint64_t resolve)
{
	int fd = open_beneath(in, in->home, path, flags, 0600, resolve);
	if (fd < 0)
		return errno;
	close(fd);
	return 0;
}

static void paths_are_judged_alike(bool has_openat2)
{
	struct init *in = calloc(1, sizeof(*in));
	in->home = open(home, O_PATH | O_DIRECTORY | O_CLOEXEC);
	in->has_openat2 = has_openat2;
	expect(error_of(in, "file", O_WRONLY | O_CREAT, 0) == 0);
	expect(error_of(in, "./file", O_RDONLY, RESOLVE_NO_XDEV) == 0);
	expect(error_of(in, "file/", O_RDONLY, 0) == ENOTDIR);
	expect(error_of(in, "folder//file", O_WRONLY | O_CREAT, 0) == 0);
	expect(error_of(in, "", O_RDONLY, 0) == ENOENT);
	expect(error_of(in, "/", O_RDONLY, 0) == EXDEV);
	expect(error_of(in, "..", O_RDONLY, 0) == EXDEV);
	expect(error_of(in, "folder/../file", O_RDONLY, 0) == EXDEV);
	expect(error_of(in, "...", O_RDONLY, 0) == ENOENT);
	expect(error_of(in, "..x/y", O_RDONLY, 0) == ENOENT);
	expect(error_of(in, "out/passwd", O_RDONLY, 0) != 0);
	expect(error_of(in, "link", O_WRONLY, 0) == ELOOP);
	expect(error_of(in, "link", O_PATH | O_NOFOLLOW, 0) == 0);
	expect(error_of(in, "link", O_PATH, RESOLVE_NO_SYMLINKS) == ELOOP);
	expect(error_of(in, "file", O_RDONLY | O_NOFOLLOW, 0) == 0);
	close(in->home);
	free(in);
}

static void last_component_must_be_a_name(void)
{
	struct init *in = calloc(1, sizeof(*in));
	const char *bad[] = { "", ".", "..", "a/", "a/.", "a/..", "/", "//" };
	const char *name;
	in->home = open(home, O_PATH | O_DIRECTORY | O_CLOEXEC);
	in->has_openat2 = true;
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		errno = 0;
		expect(open_parent(in, bad[i], 0, &name) == -1 && errno == EINVAL);
	}
	int parent = open_parent(in, "folder/x", 0, &name);
	expect(parent >= 0 && !strcmp(name, "x"));
	close(parent);
	expect(open_parent(in, "/x", 0, &name) == -1 && errno == EXDEV);
	expect(are_rules(RESOLVE_NO_XDEV | RESOLVE_BENEATH) && !are_rules(RESOLVE_IN_ROOT));
	expect(!are_rules(RESOLVE_CACHED) && !are_rules(1ULL << 40));
	close(in->home);
	free(in);
}

/* ---- --cap-inodes ---- */

static bool parses(int count, const char *const *strings)
{
	struct inode_caps caps;
	char *arguments[8];

	for (int i = 0; i < count; i++)
		arguments[i] = (char *)strings[i];
	return parse_inode_caps(count, arguments, &caps);
}

static void caps_are_taken_apart(void)
{
	char *arguments[] = { "17", "5", "4294967294", "/tmp", "9", "/home/work", "100" };
	struct inode_caps caps;

	expect(parse_inode_caps(7, arguments, &caps));
	expect(caps.visit.pid == 17 && caps.visit.pidfd == 5 && caps.visit.uid == 4294967294u &&
	       caps.count == 4);
	expect(!strcmp(caps.places[2], "/home/work") && !strcmp(caps.places[3], "100"));
}

static void caps_that_are_not_numbers_of_places_are_refused(void)
{
	expect(parses(5, (const char *[]){ "1", "2", "3", "/tmp", "9" }));
	expect(!parses(0, NULL));
	expect(!parses(3, (const char *[]){ "1", "2", "3" }));
	expect(!parses(4, (const char *[]){ "1", "2", "3", "/tmp" }));
	expect(!parses(5, (const char *[]){ "1", "2", "3", "tmp", "9" }));
	/* 0 is no cap at all, and what follows a comma would be another option. */
	expect(!parses(5, (const char *[]){ "1", "2", "3", "/tmp", "0" }));
	expect(!parses(5, (const char *[]){ "1", "2", "3", "/tmp", "00" }));
	expect(!parses(5, (const char *[]){ "1", "2", "3", "/tmp", "9,size=1g" }));
	expect(!parses(5, (const char *[]){ "1", "2", "3", "/tmp", "9k" }));
	expect(!parses(5, (const char *[]){ "1", "2", "3", "/tmp", "99999999999999999999" }));
	expect(!parses(5, (const char *[]){ "1", "2", "4294967295", "/tmp", "9" }));
	expect(!parses(5, (const char *[]){ "1", "-2", "3", "/tmp", "9" }));
	expect(!parses(5, (const char *[]){ "2147483648", "2", "3", "/tmp", "9" }));
	expect(!parses(5, (const char *[]){ " 1", "2", "3", "/tmp", "9" }));
	expect(!parses(5, (const char *[]){ "", "2", "3", "/tmp", "9" }));
}

/* ---- --mount ---- */

static bool are_mounts(int count, const char *const *strings)
{
	struct mounts mounts;
	char *arguments[16];

	for (int i = 0; i < count; i++)
		arguments[i] = (char *)strings[i];
	return parse_mounts(count, arguments, &mounts);
}

static void mounts_are_taken_apart(void)
{
	char *arguments[] = { "17", "5", "1000", "77", "ro", "/a", ".", "/x",
			      "rw", "/b", "c/d", "/y" };
	struct mounts mounts;

	expect(parse_mounts(12, arguments, &mounts));
	expect(mounts.visit.uid == 1000 && mounts.is_mapped && mounts.owner == 77);
	expect(mounts.count == 2 && !strcmp(mounts.words[6], "c/d"));
	arguments[3] = "-";
	expect(parse_mounts(8, arguments, &mounts) && !mounts.is_mapped && mounts.count == 1);
}

static void what_is_no_mount_is_refused(void)
{
	expect(are_mounts(8, (const char *[]){ "1", "2", "3", "-", "ro", "/a", ".", "/x" }));
	expect(!are_mounts(0, NULL));
	expect(!are_mounts(4, (const char *[]){ "1", "2", "3", "-" }));
	expect(!are_mounts(7, (const char *[]){ "1", "2", "3", "-", "ro", "/a", "." }));
	expect(!are_mounts(8, (const char *[]){ "1", "2", "3", "", "ro", "/a", ".", "/x" }));
	expect(!are_mounts(8, (const char *[]){ "1", "2", "x", "-", "ro", "/a", ".", "/x" }));
	expect(!are_mounts(8, (const char *[]){ "1", "2", "3", "-", "rx", "/a", ".", "/x" }));
	expect(!are_mounts(8, (const char *[]){ "1", "2", "3", "-", "ro", "a", ".", "/x" }));
	expect(!are_mounts(8, (const char *[]){ "1", "2", "3", "-", "ro", "/a", "", "/x" }));
	expect(!are_mounts(8, (const char *[]){ "1", "2", "3", "-", "ro", "/a", "/b", "/x" }));
	expect(!are_mounts(8, (const char *[]){ "1", "2", "3", "-", "ro", "/a", ".", "x" }));
}

int main(void)
{
	mounts_are_taken_apart();
	what_is_no_mount_is_refused();
	caps_are_taken_apart();
	caps_that_are_not_numbers_of_places_are_refused();
	strings_are_taken_one_by_one();
	string_without_end_is_a_mistake();
	after_a_mistake_nothing_is_taken();
	nothing_can_be_taken_from_nothing();
	exec_is_taken_apart();
	exec_of_any_other_length_is_refused();
	exec_needs_three_to_six_descriptors();
	exec_with_absurd_counts_is_refused();
	every_record_is_found_until_it_is_freed();
	taken_descriptors_stay_open();

	if (!mkdtemp(home) || chdir(home) < 0 || mkdir("folder", 0700) < 0 ||
	    symlink("file", "link") < 0 || symlink("/etc", "out") < 0)
		return 99;
	paths_are_judged_alike(true);
	paths_are_judged_alike(false);
	last_component_must_be_a_name();
	unlink("folder/file");
	unlink("file");
	unlink("link");
	unlink("out");
	rmdir("folder");
	rmdir(home);
	return failures ? 1 : 0;
}
