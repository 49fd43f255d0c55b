/* The work of a job: be seen at work by a lock that is not maintlock's, and look who else is.
 *
 *   worker DIRECTORY ROLE WORK_MICROSECONDS LEFT_MICROSECONDS EXIT_CODE
 *
 * Each process at work has a slot of its own in the file `witness`, at its pid's place: the grant that it works for, under a
 * record lock of fcntl(2), which the kernel takes away when it dies. Whoever begins looks at all slots that are locked: they
 * must be of the same grant. LEFT > 0 leaves a child behind that works on for so long; LEFT < 0 one that sleeps in a session
 * of its own, which has left the job. `witness.py` does the same for Python.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define SLOT 64
#define EXITING 4 /* PF_EXITING in the flags of /proc/PID/stat: it is being taken down, and works no more */
#define OWN_DESCRIPTOR 200 /* above the lock's: closed after that one when the process is taken down */

static const char *directory, *role, *grant, *fence;
static int witness;

static int opened(const char *name, int flags) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    int fd = open(path, flags | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) {
        perror(path);
        _exit(99);
    }
    return fd;
}

static long long now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec * 1000000000LL + at.tv_nsec;
}

static void say(const char *name, const char *text) {
    int fd = opened(name, O_WRONLY | O_APPEND);
    if (write(fd, text, strlen(text)) != (ssize_t)strlen(text))
        _exit(98);
    close(fd);
}

static void record(char what) {
    char text[256];
    snprintf(text, sizeof text, "%c %lld %d %s %s %s\n", what, now(), (int)getpid(), grant, fence, role);
    say("journal", text);
}

static struct flock lock_of(short type, long long begin, long long end) {
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = begin, .l_len = end ? end - begin : 0};
    return lock;
}

static void put_lock(short type) {
    long long begin = (long long)getpid() * SLOT;
    struct flock lock = lock_of(type, begin, begin + SLOT);
    if (fcntl(witness, F_SETLK, &lock)) {
        say("violations", "nobody else may have the slot of a pid\n");
        _exit(97);
    }
}

static int is_at_work(int pid) {
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    ssize_t size = read(fd, text, sizeof text - 1);
    close(fd);
    text[size < 0 ? 0 : size] = 0;
    char state, *after = strrchr(text, ')');
    unsigned flags;
    if (!after || sscanf(after, ") %c %*d %*d %*d %*d %*d %u", &state, &flags) != 2)
        return 0;
    return state != 'Z' && state != 'X' && !(flags & EXITING);
}

static void compare(long long begin, int pid) {
    char slot[SLOT + 1] = "", other[40] = "?", their_fence[24] = "?", text[512];
    struct flock again = lock_of(F_WRLCK, begin, begin + SLOT);
    if (pread(witness, slot, SLOT, begin) < 0)
        return;
    sscanf(slot, "%39s %23s", other, their_fence);
    if (!strcmp(other, grant) || fcntl(witness, F_GETLK, &again) || again.l_type == F_UNLCK || !is_at_work(pid))
        return;
    snprintf(text, sizeof text, "overlap %lld pid %d (%s) of grant %s fence %s met pid %d of grant %s fence %s\n", now(),
             (int)getpid(), role, grant, fence, pid, other, their_fence);
    say("violations", text);
}

/* F_GETLK tells of one lock in a range, not of the first: look again on both sides of it. */
static void look(long long begin, long long end) {
    struct flock lock = lock_of(F_WRLCK, begin, end);
    if ((end && begin >= end) || fcntl(witness, F_GETLK, &lock) || lock.l_type == F_UNLCK)
        return;
    compare(lock.l_start, lock.l_pid);
    look(begin, lock.l_start);
    look(lock.l_start + SLOT, end);
}

static void begin(void) {
    char slot[SLOT + 1];
    snprintf(slot, sizeof slot, "%s %s\n", grant, fence);
    if (pwrite(witness, slot, strlen(slot), (long long)getpid() * SLOT) < 0)
        _exit(96);
    put_lock(F_WRLCK);
    record('B');
    look(SLOT, 0);
}

static void end(void) {
    record('E');
    put_lock(F_UNLCK);
}

int main(int argc, char **argv) {
    if (argc != 6)
        return 64;
    directory = argv[1], role = argv[2], grant = getenv("MAINTLOCK_LEASE_ID"), fence = getenv("MAINTLOCK_FENCE");
    long work = atol(argv[3]), left = atol(argv[4]);
    int fd = opened("witness", O_RDWR);
    witness = fcntl(fd, F_DUPFD_CLOEXEC, OWN_DESCRIPTOR);
    if (witness < 0)
        witness = fd; /* few descriptors: PF_EXITING is the proof then */
    if (!grant || !fence) {
        say("violations", "a job runs without a grant\n");
        return 95;
    }
    begin();
    if (left && fork() == 0) {
        if (left < 0) {
            setsid();
            usleep(-left);
            _exit(0);
        }
        role = "leftover";
        begin();
        usleep(work + left);
        end();
        _exit(0);
    }
    usleep(work);
    end();
    return atoi(argv[5]);
}
