/*
 * The client of benchmarks/fuse.py: loops of system calls with next to nothing around them, as a
 * shared library that Python loads, so that neither an interpreter nor the start of a process is
 * measured. Names are PREFIX0, PREFIX1, ... in a directory given by descriptor.
 *
 * Everything returns 0, or the errno of the first call that failed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define NAME_SIZE 64
#define BLOCK 4096

static void name_of(char *name, const char *prefix, long n)
{
	snprintf(name, NAME_SIZE, "%s%ld", prefix, n);
}

/* One GETATTR each: the attributes must come from the server. */
static int getattr_once(int fd)
{
	struct statx stx;

	return statx(fd, "", AT_EMPTY_PATH | AT_STATX_FORCE_SYNC, STATX_BASIC_STATS, &stx) ? errno : 0;
}

int getattr_sync(int fd, long count)
{
	int error = 0;

	for (long n = 0; n < count && !error; n++)
		error = getattr_once(fd);
	return error;
}

/* Looks each name up once; `expected` is 0 for names that are there and ENOENT for others. */
int lookup(int dir, const char *prefix, long count, int expected)
{
	char name[NAME_SIZE];
	struct stat st;

	for (long n = 0; n < count; n++) {
		name_of(name, prefix, n);
		int error = fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) ? errno : 0;
		if (error != expected)
			return error ? error : EEXIST;
	}
	return 0;
}

/* Creates, writes `size` bytes at once unless that is 0, and closes. */
int create(int dir, const char *prefix, long count, long size)
{
	static const char block[BLOCK];
	char name[NAME_SIZE];

	for (long n = 0; n < count; n++) {
		name_of(name, prefix, n);
		int fd = openat(dir, name, O_CREAT | O_EXCL | O_WRONLY, 0644);
		if (fd < 0)
			return errno;
		if (size && write(fd, block, size) != size)
			return errno ? errno : EIO;
		if (close(fd))
			return errno;
	}
	return 0;
}

int remove_all(int dir, const char *prefix, long count)
{
	char name[NAME_SIZE];

	for (long n = 0; n < count; n++) {
		name_of(name, prefix, n);
		if (unlinkat(dir, name, 0))
			return errno;
	}
	return 0;
}

/* Opens, reads a block unless `size` is 0, and closes. */
int reread(int dir, const char *prefix, long count, long size)
{
	char name[NAME_SIZE], block[BLOCK];

	for (long n = 0; n < count; n++) {
		name_of(name, prefix, n);
		int fd = openat(dir, name, O_RDONLY);
		if (fd < 0)
			return errno;
		if (size && pread(fd, block, size, 0) != size)
			return errno ? errno : EIO;
		if (close(fd))
			return errno;
	}
	return 0;
}

int open_close(int dir, const char *name, long count)
{
	for (long n = 0; n < count; n++) {
		int fd = openat(dir, name, O_RDONLY);
		if (fd < 0 || close(fd))
			return errno;
	}
	return 0;
}

int read_through(int fd, long block)
{
	char *buffer = malloc(block);
	ssize_t got = 0;

	if (!buffer)
		return ENOMEM;
	do
		got = read(fd, buffer, block);
	while (got > 0);
	int error = got < 0 ? errno : 0;
	free(buffer);
	return error;
}

int write_through(int fd, long block, long count)
{
	char *buffer = calloc(1, block);
	int error = buffer ? 0 : ENOMEM;

	for (long n = 0; n < count && !error; n++)
		if (write(fd, buffer, block) != block)
			error = errno ? errno : EIO;
	if (!error && fsync(fd))
		error = errno;
	free(buffer);
	return error;
}

int read_at(int fd, const int64_t *offsets, long count)
{
	char block[BLOCK];

	for (long n = 0; n < count; n++)
		if (pread(fd, block, BLOCK, offsets[n]) != BLOCK)
			return errno ? errno : EIO;
	return 0;
}

static int64_t now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

static int timed(int fd, int64_t *ns, long count)
{
	int error = 0;

	for (long n = 0; n < count && !error; n++) {
		int64_t started = now();
		error = getattr_once(fd);
		ns[n] = now() - started;
	}
	return error;
}

/*
 * `clients` processes, each asking `count` times at once with the others; nanoseconds of every
 * request go to `ns`, memory that processes share. The end of a pipe is what they start at.
 */
int latencies(int fd, int clients, long count, int64_t *ns)
{
	int gate[2], error = 0, status;
	pid_t children[clients];
	char byte;

	if (pipe2(gate, O_CLOEXEC))
		return errno;
	for (int c = 0; c < clients; c++) {
		children[c] = fork();
		if (children[c] < 0)
			error = errno;
		if (children[c] == 0) {
			close(gate[1]);
			ssize_t got = read(gate[0], &byte, 1);
			_exit(got == 0 ? timed(fd, ns + c * count, count) : EIO);
		}
	}
	close(gate[1]);
	close(gate[0]);
	for (int c = 0; c < clients; c++) {
		if (children[c] < 0)
			continue;
		while (waitpid(children[c], &status, 0) < 0 && errno == EINTR)
			;
		if (!WIFEXITED(status))
			error = EINTR;
		else if (WEXITSTATUS(status))
			error = WEXITSTATUS(status);
	}
	return error;
}
