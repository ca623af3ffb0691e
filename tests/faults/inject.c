/* Stand between a real process and the kernel, and fail on command (LD_PRELOAD).
 *
 * What to fail, and by how much the clocks are wrong, stands in a small file that every process of a
 * test has mapped (INJECT_CONTROL): a test switches faults on and off while the processes run. Only
 * files below INJECT_DIRECTORY are touched. The layout is known to tests/faults/injecting.py.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum call { WRITE = 1, SYNC = 2, TRUNCATE = 4, READ = 8, OPEN = 16, MAP = 32, ALLOCATE = 64, UNLINK = 128 };
enum file { DATABASE = 1, LOG = 2, SHARED_MEMORY = 4, SIDE = 8, DIRECTORY = 16 };
enum { SHORT = -1 };

static struct control {
  int64_t calls;      /* which calls fail, a mask; 0: none */
  int64_t files;      /* of which files, a mask */
  int64_t first;      /* the first of these calls that fails, from 1 */
  int64_t last;       /* the last of them */
  int64_t error;      /* with which errno; SHORT: only half is written, and that is no error */
  int64_t seen;       /* counted here: how many such calls there were */
  int64_t failed;     /* and how many of them failed */
  int64_t budget;     /* by how many bytes files may still grow; -1: without a bound */
  int64_t has_budget; /* whether there is one */
  int64_t wall_ns;    /* how much the wall clock is ahead of the machine's */
  int64_t asleep_ns;  /* how long the machine has slept: CLOCK_BOOTTIME has it, CLOCK_MONOTONIC not */
  char boot_id[256];  /* a file that is read as the kernel's boot id; "": the kernel's own */
} *control;

static char directory[PATH_MAX];
static size_t directory_length;

#define REAL(name) \
  static typeof(name) *real; \
  if (!real) real = (typeof(name) *)dlsym(RTLD_NEXT, #name)

__attribute__((constructor)) static void begin(void) {
  const char *path = getenv("INJECT_CONTROL"), *below = getenv("INJECT_DIRECTORY");
  if (!path || !below) return;
  int descriptor = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC);
  if (descriptor < 0) return;
  void *mapped = (void *)syscall(SYS_mmap, NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  syscall(SYS_close, descriptor);
  if (mapped == MAP_FAILED) return;
  directory_length = (size_t)snprintf(directory, sizeof directory, "%s", below);
  control = mapped;
}

static int ends_with(const char *text, const char *end) {
  size_t length = strlen(text), wanted = strlen(end);
  return length >= wanted && !strcmp(text + length - wanted, end);
}

/* Return which kind of file a name is; 0: none of the queue's. */
static int kind_of(const char *name) {
  if (strncmp(name, directory, directory_length)) return 0;
  if (!name[directory_length]) return DIRECTORY;
  if (strstr(name, ".db-run")) return SIDE;
  if (ends_with(name, ".db-wal")) return LOG;
  if (ends_with(name, ".db-shm")) return SHARED_MEMORY;
  return ends_with(name, ".db") ? DATABASE : 0;
}

static int kind_of_descriptor(int descriptor) {
  char link[64], name[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  ssize_t length = readlink(link, name, sizeof name - 1);
  if (length < 0) return 0;
  name[length] = 0;
  return kind_of(name);
}

/* Return the error that a call shall fail with, SHORT, or 0. */
static int64_t fault_of(int call, int kind) {
  if (!(control->calls & call) || !(control->files & kind)) return 0;
  int64_t number = __atomic_add_fetch(&control->seen, 1, __ATOMIC_SEQ_CST);
  if (number < control->first || number > control->last) return 0;
  __atomic_add_fetch(&control->failed, 1, __ATOMIC_SEQ_CST);
  return control->error;
}

static int fails(int call, int descriptor) {
  if (!control || !(control->calls & call)) return 0;
  int64_t fault = fault_of(call, kind_of_descriptor(descriptor));
  if (fault > 0) errno = (int)fault;
  return fault > 0;
}

/* Return how many of the bytes may be written at an offset (-1: the descriptor's own); -1: none, see errno. */
static ssize_t allowed(int descriptor, size_t count, off_t offset) {
  if (!control || !(control->calls || control->has_budget)) return (ssize_t)count;
  int kind = kind_of_descriptor(descriptor);
  if (!kind || !count) return (ssize_t)count;
  int64_t fault = fault_of(WRITE, kind);
  if (fault == SHORT) return count > 1 ? (ssize_t)(count / 2) : (ssize_t)count;
  if (fault) {
    errno = (int)fault;
    return -1;
  }
  if (!control->has_budget) return (ssize_t)count;
  struct stat found;
  if (fstat(descriptor, &found)) return -1;
  if (offset < 0) offset = lseek(descriptor, 0, SEEK_CUR);
  off_t end = offset + (off_t)count;
  int64_t growth = end > found.st_size ? end - found.st_size : 0;
  if (!growth) return (ssize_t)count;
  int64_t left = __atomic_sub_fetch(&control->budget, growth, __ATOMIC_SEQ_CST);
  if (left >= 0) return (ssize_t)count;
  __atomic_add_fetch(&control->budget, growth, __ATOMIC_SEQ_CST);
  __atomic_add_fetch(&control->failed, 1, __ATOMIC_SEQ_CST);
  errno = ENOSPC;
  return -1;
}

#define WRITES(name, offset_type) \
  ssize_t name(int descriptor, const void *bytes, size_t count, offset_type offset) { \
    REAL(name); \
    ssize_t granted = allowed(descriptor, count, offset); \
    return granted < 0 ? -1 : real(descriptor, bytes, (size_t)granted, offset); \
  }
WRITES(pwrite, off_t)
WRITES(pwrite64, off64_t)

ssize_t write(int descriptor, const void *bytes, size_t count) {
  REAL(write);
  ssize_t granted = allowed(descriptor, count, -1);
  return granted < 0 ? -1 : real(descriptor, bytes, (size_t)granted);
}

#define READS(name, offset_type) \
  ssize_t name(int descriptor, void *bytes, size_t count, offset_type offset) { \
    REAL(name); \
    return fails(READ, descriptor) ? -1 : real(descriptor, bytes, count, offset); \
  }
READS(pread, off_t)
READS(pread64, off64_t)

int fsync(int descriptor) {
  REAL(fsync);
  return fails(SYNC, descriptor) ? -1 : real(descriptor);
}

int fdatasync(int descriptor) {
  REAL(fdatasync);
  return fails(SYNC, descriptor) ? -1 : real(descriptor);
}

#define TRUNCATES(name, offset_type) \
  int name(int descriptor, offset_type size) { \
    REAL(name); \
    return fails(TRUNCATE, descriptor) ? -1 : real(descriptor, size); \
  }
TRUNCATES(ftruncate, off_t)
TRUNCATES(ftruncate64, off64_t)

/* It returns its error. */
#define ALLOCATES(name, offset_type) \
  int name(int descriptor, offset_type offset, offset_type size) { \
    REAL(name); \
    return fails(ALLOCATE, descriptor) ? errno : real(descriptor, offset, size); \
  }
ALLOCATES(posix_fallocate, off_t)
ALLOCATES(posix_fallocate64, off64_t)

#define MAPS(name, offset_type) \
  void *name(void *where, size_t size, int protection, int flags, int descriptor, offset_type offset) { \
    REAL(name); \
    if (descriptor >= 0 && fails(MAP, descriptor)) return MAP_FAILED; \
    return real(where, size, protection, flags, descriptor, offset); \
  }
MAPS(mmap, off_t)
MAPS(mmap64, off64_t)

int unlink(const char *name) {
  REAL(unlink);
  int64_t fault = control ? fault_of(UNLINK, kind_of(name)) : 0;
  if (fault > 0) errno = (int)fault;
  return fault > 0 ? -1 : real(name);
}

/* Return the name to open instead, or NULL with errno set. */
static const char *opened(const char *name) {
  if (!control) return name;
  if (control->boot_id[0] && !strcmp(name, "/proc/sys/kernel/random/boot_id")) return control->boot_id;
  int64_t fault = control->calls & OPEN ? fault_of(OPEN, kind_of(name)) : 0;
  if (fault > 0) errno = (int)fault;
  return fault > 0 ? NULL : name;
}

#define MODE_OF(flags, last) \
  mode_t mode = 0; \
  if ((flags) & (O_CREAT | __O_TMPFILE)) { \
    va_list rest; \
    va_start(rest, last); \
    mode = va_arg(rest, mode_t); \
    va_end(rest); \
  }
#define OPENS(function) \
  int function(const char *name, int flags, ...) { \
    REAL(function); \
    MODE_OF(flags, flags) \
    const char *instead = opened(name); \
    return instead ? real(instead, flags, mode) : -1; \
  }
OPENS(open)
OPENS(open64)

#define OPENS_AT(function) \
  int function(int where, const char *name, int flags, ...) { \
    REAL(function); \
    MODE_OF(flags, flags) \
    const char *instead = opened(name); \
    return instead ? real(where, instead, flags, mode) : -1; \
  }
OPENS_AT(openat)
OPENS_AT(openat64)

static void add(struct timespec *now, int64_t ns) {
  int64_t sum = now->tv_nsec + ns % 1000000000;
  now->tv_sec += ns / 1000000000;
  if (sum < 0) sum += 1000000000, now->tv_sec--;
  if (sum >= 1000000000) sum -= 1000000000, now->tv_sec++;
  now->tv_nsec = sum;
}

int clock_gettime(clockid_t which, struct timespec *now) {
  REAL(clock_gettime);
  int answer = real(which, now);
  if (answer || !control) return answer;
  if (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE) add(now, control->wall_ns);
  if (which == CLOCK_BOOTTIME) add(now, control->asleep_ns);
  return 0;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  struct timespec told;
  (void)zone;
  int answer = clock_gettime(CLOCK_REALTIME, &told);
  now->tv_sec = told.tv_sec;
  now->tv_usec = told.tv_nsec / 1000;
  return answer;
}

time_t time(time_t *where) {
  struct timespec told;
  clock_gettime(CLOCK_REALTIME, &told);
  if (where) *where = told.tv_sec;
  return told.tv_sec;
}
