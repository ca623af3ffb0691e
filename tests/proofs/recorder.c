/* Record what a process asks of the disk, in the order in which it got it.
 *
 * Preloaded (LD_PRELOAD) it stands between a program and the C library, whoever calls: SQLite, our
 * own flushes, Python. What touches a file or a name below $RECORDER_DIRECTORY (a real path) is
 * appended to $RECORDER_LOG, one record a call, each by a single append, so that the records of all
 * processes stand in one order. `recording.py` reads them and knows the same numbers.
 *
 * A change is recorded after it happened and before the caller hears of it: whoever is kept away by
 * a lock until then comes later in the log, too. A sync has a record before and one after; what was
 * recorded before its first is on the disk from its second on. So the log never says that something
 * is safer than it is. Content that reaches a file through a mapping is not recorded.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
    WRITE = 1,
    TRUNCATE = 2,
    EXTEND = 3,
    SYNC_BEGIN = 4,
    SYNC_END = 5,
    CREATE = 6,
    MKDIR = 7,
    RENAME = 8,
    UNLINK = 9,
    LINK = 10,
};

struct record {
    uint32_t size; /* of record and payload */
    uint32_t kind;
    uint32_t pid;
    uint32_t tid;
    uint64_t inode;
    uint64_t at; /* an offset or a size in bytes */
};

static const char *directory, *log_path;
static size_t directory_length;
static unsigned records_left; /* until this process kills itself; 0: it does not */

/* For recorded programs: die by SIGKILL right after so many further records of this process. */
void recorder_die_after(unsigned records)
{
    records_left = records;
}

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

__attribute__((constructor)) static void begin(void)
{
    directory = getenv("RECORDER_DIRECTORY");
    log_path = getenv("RECORDER_LOG");
    directory_length = directory ? strlen(directory) : 0;
    if (!log_path) directory_length = 0;
}

static void fail(const char *what)
{
    dprintf(2, "recorder: %s: %s\n", what, strerror(errno));
    _exit(98);
}

/* The log is opened for each record, by system calls: a program may close what it does not know,
 * and nothing here may come back to the functions below. */
static void record(uint32_t kind, uint64_t inode, uint64_t at, const struct iovec *payload, int parts)
{
    int saved = errno;
    struct record head = {sizeof head, kind, (uint32_t)getpid(), (uint32_t)syscall(SYS_gettid), inode, at};
    struct iovec all[8] = {{&head, sizeof head}};
    for (int i = 0; i < parts; i++) {
        all[i + 1] = payload[i];
        head.size += (uint32_t)payload[i].iov_len;
    }
    long log = syscall(SYS_openat, AT_FDCWD, log_path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (log < 0) fail("open");
    if (syscall(SYS_writev, log, all, parts + 1) != (long)head.size) fail("append");
    syscall(SYS_close, log);
    if (records_left && !--records_left) kill(getpid(), SIGKILL);
    errno = saved;
}

static int is_ours(const char *path)
{
    return directory_length && !strncmp(path, directory, directory_length) &&
           (path[directory_length] == '/' || !path[directory_length]);
}

/* Give the inode of an open file or directory of ours; 0 for any other. */
static uint64_t inode_of(int fd)
{
    char link[64], path[PATH_MAX];
    struct stat found;
    if (!directory_length || fd < 0) return 0;
    int saved = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = saved;
    if (length <= 0) return 0;
    path[length] = 0;
    if (!is_ours(path) || fstat(fd, &found)) return 0;
    if (!S_ISREG(found.st_mode) && !S_ISDIR(found.st_mode)) return 0;
    return found.st_ino;
}

/* Write the real path of a name into `out`, which need not exist; say whether it is ours. */
static int name_of(int at, const char *path, char *out)
{
    char whole[PATH_MAX * 2], parent[PATH_MAX], link[64];
    if (!directory_length || !path) return 0;
    int saved = errno;
    ssize_t length = 0;
    if (path[0] != '/') {
        snprintf(link, sizeof link, at == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", at);
        length = readlink(link, whole, PATH_MAX - 1);
        if (length < 0) length = 0;
        whole[length++] = '/';
    }
    snprintf(whole + length, sizeof whole - length, "%s", path);
    char *slash = strrchr(whole, '/');
    *slash = 0;
    int is_there = realpath(*whole ? whole : "/", parent) != NULL;
    errno = saved;
    if (!is_there) return 0;
    return snprintf(out, PATH_MAX, "%s/%s", parent, slash + 1) < PATH_MAX && is_ours(out);
}

static void record_name(uint32_t kind, uint64_t inode, char *one, char *other)
{
    struct iovec names[2] = {{one, strlen(one) + 1}, {other, other ? strlen(other) + 1 : 0}};
    record(kind, inode, 0, names, other ? 2 : 1);
}

/* -- opening ---------------------------------------------------------------------------------- */

static int is_missing(int at, const char *path)
{
    struct stat found;
    int saved = errno, answer = fstatat(at, path, &found, AT_SYMLINK_NOFOLLOW);
    errno = saved;
    return answer != 0;
}

static int opened(int at, const char *path, int flags, int was_missing, int fd)
{
    char name[PATH_MAX];
    uint64_t inode;
    if (fd < 0 || !(flags & (O_CREAT | O_TRUNC)) || !(inode = inode_of(fd))) return fd;
    if (flags & O_CREAT && was_missing && name_of(at, path, name)) record_name(CREATE, inode, name, NULL);
    if (flags & O_TRUNC) record(TRUNCATE, inode, 0, NULL, 0);
    return fd;
}

static mode_t mode_of(int flags, va_list arguments)
{
    return flags & (O_CREAT | __O_TMPFILE) ? va_arg(arguments, mode_t) : 0;
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) \
    { \
        REAL(name); \
        va_list arguments; \
        va_start(arguments, flags); \
        mode_t mode = mode_of(flags, arguments); \
        va_end(arguments); \
        int was_missing = directory_length && flags & O_CREAT && is_missing(AT_FDCWD, path); \
        return opened(AT_FDCWD, path, flags, was_missing, real(path, flags, mode)); \
    }
#define OPENAT(name) \
    int name(int at, const char *path, int flags, ...) \
    { \
        REAL(name); \
        va_list arguments; \
        va_start(arguments, flags); \
        mode_t mode = mode_of(flags, arguments); \
        va_end(arguments); \
        int was_missing = directory_length && flags & O_CREAT && is_missing(at, path); \
        return opened(at, path, flags, was_missing, real(at, path, flags, mode)); \
    }
#define CREAT(name) \
    int name(const char *path, mode_t mode) \
    { \
        REAL(name); \
        int was_missing = directory_length && is_missing(AT_FDCWD, path); \
        return opened(AT_FDCWD, path, O_CREAT | O_TRUNC, was_missing, real(path, mode)); \
    }
/* clang-format off */
OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64) CREAT(creat) CREAT(creat64)
/* clang-format on */

/* -- content ---------------------------------------------------------------------------------- */

static void wrote(int fd, off_t at, const void *from, ssize_t count)
{
    uint64_t inode = count > 0 ? inode_of(fd) : 0;
    if (!inode) return;
    if (at < 0) at = lseek(fd, 0, SEEK_CUR) - count;
    struct iovec content = {(void *)(uintptr_t)from, (size_t)count};
    record(WRITE, inode, (uint64_t)at, &content, 1);
}

static void wrote_all(int fd, off_t at, const struct iovec *parts, int count, ssize_t written)
{
    if (written <= 0 || !inode_of(fd)) return;
    if (at < 0) at = lseek(fd, 0, SEEK_CUR) - written;
    for (int i = 0; i < count && written > 0; i++) {
        ssize_t length = (ssize_t)parts[i].iov_len < written ? (ssize_t)parts[i].iov_len : written;
        wrote(fd, at, parts[i].iov_base, length);
        at += length;
        written -= length;
    }
}

ssize_t write(int fd, const void *from, size_t count)
{
    REAL(write);
    ssize_t written = real(fd, from, count);
    wrote(fd, -1, from, written);
    return written;
}

#define PWRITE(name, offset) \
    ssize_t name(int fd, const void *from, size_t count, offset at) \
    { \
        REAL(name); \
        ssize_t written = real(fd, from, count, at); \
        wrote(fd, at, from, written); \
        return written; \
    }
/* clang-format off */
PWRITE(pwrite, off_t) PWRITE(pwrite64, off64_t)
/* clang-format on */

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    REAL(writev);
    ssize_t written = real(fd, parts, count);
    wrote_all(fd, -1, parts, count, written);
    return written;
}

#define PWRITEV(name, parameters, arguments) \
    ssize_t name parameters \
    { \
        REAL(name); \
        ssize_t written = real arguments; \
        wrote_all(fd, at, parts, count, written); \
        return written; \
    }
/* clang-format off */
PWRITEV(pwritev, (int fd, const struct iovec *parts, int count, off_t at), (fd, parts, count, at))
PWRITEV(pwritev64, (int fd, const struct iovec *parts, int count, off64_t at), (fd, parts, count, at))
PWRITEV(pwritev2, (int fd, const struct iovec *parts, int count, off_t at, int flags),
        (fd, parts, count, at, flags))
PWRITEV(pwritev64v2, (int fd, const struct iovec *parts, int count, off64_t at, int flags),
        (fd, parts, count, at, flags))
/* clang-format on */

#define FTRUNCATE(name, offset) \
    int name(int fd, offset size) \
    { \
        REAL(name); \
        int answer = real(fd, size); \
        uint64_t inode = answer ? 0 : inode_of(fd); \
        if (inode) record(TRUNCATE, inode, (uint64_t)size, NULL, 0); \
        return answer; \
    }
#define TRUNCATE_PATH(name, offset) \
    int name(const char *path, offset size) \
    { \
        REAL(name); \
        struct stat found; \
        char whole[PATH_MAX]; \
        int answer = real(path, size); \
        if (!answer && name_of(AT_FDCWD, path, whole) && !stat(whole, &found)) \
            record(TRUNCATE, found.st_ino, (uint64_t)size, NULL, 0); \
        return answer; \
    }
#define FALLOCATE(name, is_other, parameters, arguments) \
    int name parameters \
    { \
        REAL(name); \
        int answer = real arguments; \
        uint64_t inode = answer ? 0 : inode_of(fd); \
        if (inode && (is_other)) fail(#name " that does not extend a recorded file"); \
        if (inode) record(EXTEND, inode, (uint64_t)(at + length), NULL, 0); \
        return answer; \
    }
/* clang-format off */
FTRUNCATE(ftruncate, off_t) FTRUNCATE(ftruncate64, off64_t)
TRUNCATE_PATH(truncate, off_t) TRUNCATE_PATH(truncate64, off64_t)
FALLOCATE(fallocate, mode, (int fd, int mode, off_t at, off_t length), (fd, mode, at, length))
FALLOCATE(fallocate64, mode, (int fd, int mode, off64_t at, off64_t length), (fd, mode, at, length))
FALLOCATE(posix_fallocate, 0, (int fd, off_t at, off_t length), (fd, at, length))
FALLOCATE(posix_fallocate64, 0, (int fd, off64_t at, off64_t length), (fd, at, length))
/* clang-format on */

/* Copies inside of the kernel have no content we could see: nobody may use them on our files. */
#define REFUSED(name, parameters, arguments) \
    ssize_t name parameters \
    { \
        REAL(name); \
        if (inode_of(to)) { \
            errno = ENOSYS; \
            fail(#name " into a recorded file"); \
        } \
        return real arguments; \
    }
/* clang-format off */
REFUSED(sendfile, (int to, int from, off_t *at, size_t count), (to, from, at, count))
REFUSED(sendfile64, (int to, int from, off64_t *at, size_t count), (to, from, at, count))
REFUSED(copy_file_range, (int from, off64_t *at, int to, off64_t *to_at, size_t count, unsigned flags),
        (from, at, to, to_at, count, flags))
/* clang-format on */

/* -- syncs ------------------------------------------------------------------------------------ */

#define SYNC(name, parameters, arguments) \
    int name parameters \
    { \
        REAL(name); \
        uint64_t inode = inode_of(fd); \
        if (inode) record(SYNC_BEGIN, inode, 0, NULL, 0); \
        int answer = real arguments; \
        if (inode && !answer) record(SYNC_END, inode, 0, NULL, 0); \
        return answer; \
    }
/* clang-format off */
SYNC(fsync, (int fd), (fd))
SYNC(fdatasync, (int fd), (fd))
/* clang-format on */
/* sync_file_range promises nothing (sync_file_range(2)), so it is not recorded. */

/* -- names ------------------------------------------------------------------------------------ */

static int made_directory(int at, const char *path, int answer)
{
    char name[PATH_MAX];
    struct stat found;
    if (!answer && name_of(at, path, name) && !stat(name, &found))
        record_name(MKDIR, found.st_ino, name, NULL);
    return answer;
}

int mkdir(const char *path, mode_t mode)
{
    REAL(mkdir);
    return made_directory(AT_FDCWD, path, real(path, mode));
}

int mkdirat(int at, const char *path, mode_t mode)
{
    REAL(mkdirat);
    return made_directory(at, path, real(at, path, mode));
}

static int removed(int at, const char *path, int answer)
{
    char name[PATH_MAX];
    if (!answer && name_of(at, path, name)) record_name(UNLINK, 0, name, NULL);
    return answer;
}

int unlink(const char *path)
{
    REAL(unlink);
    return removed(AT_FDCWD, path, real(path));
}

int unlinkat(int at, const char *path, int flags)
{
    REAL(unlinkat);
    return removed(at, path, real(at, path, flags));
}

int rmdir(const char *path)
{
    REAL(rmdir);
    return removed(AT_FDCWD, path, real(path));
}

int remove(const char *path)
{
    REAL(remove);
    return removed(AT_FDCWD, path, real(path));
}

static int moved(int from_at, const char *from, int to_at, const char *to, int answer)
{
    char old[PATH_MAX], new[PATH_MAX];
    if (answer) return answer;
    int left = name_of(from_at, from, old), came = name_of(to_at, to, new);
    if (left != came) {
        errno = EXDEV;
        fail("a name moved into or out of the recorded directory");
    }
    if (left) record_name(RENAME, 0, old, new);
    return answer;
}

int rename(const char *from, const char *to)
{
    REAL(rename);
    return moved(AT_FDCWD, from, AT_FDCWD, to, real(from, to));
}

int renameat(int from_at, const char *from, int to_at, const char *to)
{
    REAL(renameat);
    return moved(from_at, from, to_at, to, real(from_at, from, to_at, to));
}

int renameat2(int from_at, const char *from, int to_at, const char *to, unsigned flags)
{
    REAL(renameat2);
    return moved(from_at, from, to_at, to, real(from_at, from, to_at, to, flags));
}

static int linked(int at, const char *path, int answer)
{
    char name[PATH_MAX];
    struct stat found;
    if (!answer && name_of(at, path, name) && !stat(name, &found))
        record_name(LINK, found.st_ino, name, NULL);
    return answer;
}

int link(const char *from, const char *to)
{
    REAL(link);
    return linked(AT_FDCWD, to, real(from, to));
}

int linkat(int from_at, const char *from, int to_at, const char *to, int flags)
{
    REAL(linkat);
    return linked(to_at, to, real(from_at, from, to_at, to, flags));
}
