/* Counts what torch's CPU allocator gives out and takes back, in all threads, to the byte.
 *
 * torch asks for host memory through posix_memalign (c10/core/impl/alloc_cpu.cpp), as oneDNN does
 * for its scratch: who asks is told by the library that the call comes from. Preloaded before libc.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define PLACES (1u << 20)
#define ALIGNMENT 64 /* of what the allocator asks for: other pointers need no look */
#define CALLERS 64

extern void *__libc_memalign(size_t alignment, size_t size);
extern void __libc_free(void *pointer);

static struct { uintptr_t pointer; size_t size; } table[PLACES];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static size_t live, peak;

static unsigned place_of(uintptr_t pointer) {
    return (unsigned)((pointer >> 6) * 2654435761u) & (PLACES - 1);
}

/* Open addressing: a place is free, or it is the pointer's, or the next one is looked at. */
static unsigned find(uintptr_t pointer) {
    unsigned place = place_of(pointer);
    while (table[place].pointer != 0 && table[place].pointer != pointer)
        place = (place + 1) & (PLACES - 1);
    return place;
}

static void forget(unsigned place) {
    unsigned next = place;
    table[place].pointer = 0;
    for (;;) { /* what follows must still be found */
        next = (next + 1) & (PLACES - 1);
        if (table[next].pointer == 0)
            return;
        unsigned wanted = place_of(table[next].pointer);
        if (((next - wanted) & (PLACES - 1)) >= ((next - place) & (PLACES - 1))) {
            table[place] = table[next];
            table[next].pointer = 0;
            place = next;
        }
    }
}

/* Whether an address is in torch's library of allocators; there are few callers to remember. */
static int is_allocator(void *caller) {
    static struct { void *caller; int found; } known[CALLERS];
    static unsigned count;
    static pthread_mutex_t knowing = PTHREAD_MUTEX_INITIALIZER;
    Dl_info about;
    unsigned n = 0;
    pthread_mutex_lock(&knowing);
    while (n < count && known[n].caller != caller)
        n++;
    int found;
    if (n < count) {
        found = known[n].found;
    } else {
        found = dladdr(caller, &about) && strstr(about.dli_fname, "/libc10.so") != NULL;
        if (count < CALLERS) {
            known[count].caller = caller;
            known[count++].found = found;
        }
    }
    pthread_mutex_unlock(&knowing);
    return found;
}

int posix_memalign(void **out, size_t alignment, size_t size) {
    void *pointer = __libc_memalign(alignment, size);
    if (pointer == NULL)
        return ENOMEM;
    if (alignment == ALIGNMENT && is_allocator(__builtin_return_address(0))) {
        pthread_mutex_lock(&lock);
        unsigned place = find((uintptr_t)pointer);
        table[place].pointer = (uintptr_t)pointer;
        table[place].size = size;
        live += size;
        if (live > peak)
            peak = live;
        pthread_mutex_unlock(&lock);
    }
    *out = pointer;
    return 0;
}

void free(void *pointer) {
    if (pointer != NULL && ((uintptr_t)pointer & (ALIGNMENT - 1)) == 0) {
        pthread_mutex_lock(&lock);
        unsigned place = find((uintptr_t)pointer);
        if (table[place].pointer != 0) {
            live -= table[place].size;
            forget(place);
        }
        pthread_mutex_unlock(&lock);
    }
    __libc_free(pointer);
}

size_t counted_live(void) { return live; }
size_t counted_peak(void) { return peak; }
void start_peak(void) {
    pthread_mutex_lock(&lock);
    peak = live;
    pthread_mutex_unlock(&lock);
}
