/* The wall clock of one process, shifted and at another rate: CLOCK_SHIFT seconds, CLOCK_RATE.
   Only the wall clock: timers and the monotonic clock stay as they are. Preloaded. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static int (*real)(clockid_t, struct timespec *);
static double shift, rate = 1, began;

static double seconds(const struct timespec *t) { return t->tv_sec + t->tv_nsec / 1e9; }

__attribute__((constructor)) static void begin(void) {
    struct timespec now;
    real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    if (getenv("CLOCK_SHIFT")) shift = atof(getenv("CLOCK_SHIFT"));
    if (getenv("CLOCK_RATE")) rate = atof(getenv("CLOCK_RATE"));
    real(CLOCK_REALTIME, &now);
    began = seconds(&now);
}

int clock_gettime(clockid_t clock, struct timespec *t) {
    if (!real) begin();
    int failed = real(clock, t);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        double told = began + (seconds(t) - began) * rate + shift;
        t->tv_sec = (time_t)told;
        t->tv_nsec = (long)((told - (double)t->tv_sec) * 1e9);
    }
    return failed;
}

int gettimeofday(struct timeval *restrict t, void *restrict zone) {
    struct timespec now;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &now)) return -1;
    t->tv_sec = now.tv_sec;
    t->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *t) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (t) *t = now.tv_sec;
    return now.tv_sec;
}
