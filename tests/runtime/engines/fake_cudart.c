/* A libcudart without a GPU: "device" memory is host memory, every call is counted, any call can be
 * made to fail. Copies to the host happen only when the stream is synchronised, copies outside an
 * allocation fail, fresh memory is full of NaN: what a GPU would punish now and then, this always
 * does. */
#include <stdlib.h>
#include <string.h>

enum { SLOTS = 64, CALLS = 32 };

static struct { char *start; size_t size; int host; } blocks[SLOTS];
static struct { const void *source; void *target; size_t size; } queue[SLOTS];
static struct { char name[40]; int calls, fail_at, code; } counters[CALLS];
static int queued, streams, major_sm = 8, minor_sm = 7, devices = 1;

static int entry(const char *name) {
    int i = 0;
    while (i < CALLS - 1 && counters[i].name[0] && strcmp(counters[i].name, name)) i++;
    strncpy(counters[i].name, name, sizeof counters[i].name - 1);
    return i;
}

static int count(const char *name) {
    int i = entry(name);
    return ++counters[i].calls == counters[i].fail_at ? counters[i].code : 0;
}

void fake_reset(void) {
    memset(counters, 0, sizeof counters);
    queued = 0, major_sm = 8, minor_sm = 7, devices = 1;
}
void fake_fail(const char *name, int call, int code) {
    int i = entry(name);
    counters[i].fail_at = counters[i].calls + call, counters[i].code = code;
}
int fake_calls(const char *name) { return counters[entry(name)].calls; }
void fake_gpu(int count, int major, int minor) { devices = count, major_sm = major, minor_sm = minor; }
int fake_live(void) {
    int live = streams;
    for (int i = 0; i < SLOTS; i++) live += blocks[i].start != NULL;
    return live;
}

void fake_sweep(void) {
    for (int i = 0; i < SLOTS; i++) free(blocks[i].start), blocks[i].start = NULL;
    streams = 0;
}

static int inside(const void *start, size_t size, int host) {
    for (int i = 0; i < SLOTS; i++) {
        char *low = blocks[i].start;
        if (low && blocks[i].host == host && (char *)start >= low &&
            (char *)start + size <= low + blocks[i].size) return 1;
    }
    return 0;
}

static int take(void **out, size_t size, int host) {
    for (int i = 0; i < SLOTS; i++) {
        if (blocks[i].start) continue;
        blocks[i].start = malloc(size), blocks[i].size = size, blocks[i].host = host;
        memset(blocks[i].start, 0xff, size);
        *out = blocks[i].start;
        return 0;
    }
    return 2;
}

static int give(void *start, int host) {
    for (int i = 0; i < SLOTS; i++) {
        if (blocks[i].start != start || blocks[i].host != host) continue;
        free(blocks[i].start), blocks[i].start = NULL;
        return 0;
    }
    return 1;
}

int cudaGetDeviceCount(int *out) {
    int code = count("cudaGetDeviceCount");
    *out = devices;
    return code;
}
int cudaDeviceGetAttribute(int *out, int attribute, int device) {
    int code = count("cudaDeviceGetAttribute");
    if (device || attribute < 75 || attribute > 76) return 1;
    *out = attribute == 75 ? major_sm : minor_sm;
    return code;
}
int cudaMalloc(void **out, size_t size) {
    int code = count("cudaMalloc");
    return code ? code : take(out, size, 0);
}
int cudaHostAlloc(void **out, size_t size, unsigned flags) {
    int code = count("cudaHostAlloc");
    return code ? code : flags ? 1 : take(out, size, 1);
}
int cudaFree(void *start) {
    int code = count("cudaFree");
    return code ? code : give(start, 0);
}
int cudaFreeHost(void *start) {
    int code = count("cudaFreeHost");
    return code ? code : give(start, 1);
}
int cudaMemcpyAsync(void *target, const void *source, size_t size, int kind, void *stream) {
    int code = count("cudaMemcpyAsync");
    if (code) return code;
    if (stream != (void *)&streams || (kind != 1 && kind != 2) || queued == SLOTS) return 1;
    if (!inside(target, size, kind == 2) || !inside(source, size, kind == 1)) return 1;
    if (kind == 1) {
        memcpy(target, source, size);
    } else {
        queue[queued].source = source, queue[queued].target = target, queue[queued++].size = size;
    }
    return 0;
}
int cudaStreamCreate(void **out) {
    int code = count("cudaStreamCreate");
    if (code) return code;
    streams++, *out = &streams;
    return 0;
}
int cudaStreamSynchronize(void *stream) {
    int code = count("cudaStreamSynchronize");
    if (code || stream != (void *)&streams) return code ? code : 1;
    for (int i = 0; i < queued; i++) memcpy(queue[i].target, queue[i].source, queue[i].size);
    queued = 0;
    return 0;
}
int cudaStreamDestroy(void *stream) {
    int code = count("cudaStreamDestroy");
    if (code || stream != (void *)&streams || !streams) return code ? code : 1;
    streams--;
    return 0;
}
const char *cudaGetErrorName(int code) {
    return code == 1     ? "cudaErrorInvalidValue"
           : code == 2   ? "cudaErrorMemoryAllocation"
           : code == 35  ? "cudaErrorInsufficientDriver"
           : code == 700 ? "cudaErrorIllegalAddress"
                         : "cudaErrorUnknown";
}
const char *cudaGetErrorString(int code) { return code == 2 ? "out of memory" : "it failed"; }
