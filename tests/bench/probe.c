/* The job of a benchmark, without a runtime whose start would be measured too.
 *
 *   probe first          prints CLOCK_MONOTONIC in nanoseconds as its first deed
 *   probe hold           prints its pid, waits until standard input closes, prints the clock as its last deed
 *   probe log FILE WORD  appends a line with one write
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int print_clock(void)
{
    struct timespec now;
    char line[32];
    clock_gettime(CLOCK_MONOTONIC, &now);
    int length = snprintf(line, sizeof line, "%lld\n", now.tv_sec * 1000000000LL + now.tv_nsec);
    return write(STDOUT_FILENO, line, length) != length;
}

static int hold(void)
{
    char line[32];
    int length = snprintf(line, sizeof line, "%d\n", getpid());
    if (write(STDOUT_FILENO, line, length) != length)
        return 1;
    while (read(STDIN_FILENO, line, sizeof line) > 0)
        ;
    return print_clock();
}

static int log_grant(const char *path, const char *word)
{
    char line[32];
    int length = snprintf(line, sizeof line, "%s\n", word);
    int fd = open(path, O_WRONLY | O_APPEND | O_CREAT, 0600);
    return fd < 0 || write(fd, line, length) != length;
}

int main(int argc, char **argv)
{
    if (argc == 2 && !strcmp(argv[1], "first"))
        return print_clock();
    if (argc == 2 && !strcmp(argv[1], "hold"))
        return hold();
    return argc == 4 && !strcmp(argv[1], "log") ? log_grant(argv[2], argv[3]) : 64;
}
