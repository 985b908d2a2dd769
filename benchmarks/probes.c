// The machine's limits: memory reads and multiply-adds of all threads together, a line of JSON for each line asked.
//   read THREADS   bytes a second; the best of 1, 2 and 4 streams a thread, with and without prefetch
//   pages THREADS  bytes a second of memory that was asked for and is touched for the first time
//   int8 THREADS, f32 THREADS, bf16 THREADS   multiply-adds a second; 0 where the processor has no such instruction
// Arithmetic is inline assembly, so that the compiler neither removes it nor puts it in another way.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#define MOST 256
#define BUFFER ((size_t)1 << 29) // bytes: far beyond any cache

#if defined(__AVX512F__)
#define REGISTER 64
#elif defined(__AVX__)
#define REGISTER 32
#else
#define REGISTER 16
#endif
typedef uint64_t Vector __attribute__((vector_size(REGISTER)));

static unsigned char *buffer;
static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

// ---- reads

// A stream is read by cache lines; each register of a line has its sum.
#define READ(NAME, STREAMS, PREFETCH)                                                                                  \
    static void NAME(const unsigned char *from, size_t size) {                                                         \
        const size_t part = size / STREAMS / 64 * 64;                                                                  \
        Vector a = {0}, b = {0}, c = {0}, d = {0};                                                                     \
        for (size_t i = 0; i < part; i += 64) {                                                                        \
            _Pragma("GCC unroll 4") for (int s = 0; s < STREAMS; ++s) {                                                \
                const Vector *at = (const Vector *)(from + s * part + i);                                              \
                if (PREFETCH) __builtin_prefetch((const unsigned char *)at + 2048, 0, 3);                              \
                a ^= at[0];                                                                                            \
                if (REGISTER < 64) b ^= at[1];                                                                         \
                if (REGISTER < 32) c ^= at[2], d ^= at[3];                                                             \
            }                                                                                                          \
        }                                                                                                              \
        volatile Vector sink = a ^ b ^ c ^ d;                                                                          \
        (void)sink;                                                                                                    \
    }
READ(read1, 1, 0)
READ(read2, 2, 0)
READ(read4, 4, 0)
READ(read1p, 1, 1)
READ(read2p, 2, 1)
READ(read4p, 4, 1)

static void touch(const unsigned char *from, size_t size) {
    for (size_t i = 0; i < size; i += 4096) ((volatile unsigned char *)from)[i] = 1;
}

// ---- multiply-adds: ROUNDS times 12 independent sums

#define ROUNDS 100000L
#define EACH(X) X(s0) X(s1) X(s2) X(s3) X(s4) X(s5) X(s6) X(s7) X(s8) X(s9) X(s10) X(s11)
#if defined(__aarch64__)
#define KEEP(S) __asm__ volatile("" ::"w"(S));
#else
#define KEEP(S) __asm__ volatile("" ::"v"(S));
#endif
#define LOOP(TYPE, ONE)                                                                                                \
    TYPE a = {0}, b = {0};                                                                                             \
    TYPE s0 = {0}, s1 = s0, s2 = s0, s3 = s0, s4 = s0, s5 = s0;                                                        \
    TYPE s6 = s0, s7 = s0, s8 = s0, s9 = s0, s10 = s0, s11 = s0;                                                       \
    for (long i = 0; i < ROUNDS; ++i) { EACH(ONE) }                                                                    \
    EACH(KEEP)

#if defined(__x86_64__)
#include <immintrin.h>
#define OP(TEXT, S) __asm__ volatile(TEXT " %2, %1, %0" : "+v"(S) : "v"(a), "v"(b));
#if defined(__AVX512F__)
#define WIDTH_F32 16
#define F32(S) OP("vfmadd231ps", S)
static void f32(void) { LOOP(__m512, F32); }
#elif defined(__FMA__)
#define WIDTH_F32 8
#define F32(S) OP("vfmadd231ps", S)
static void f32(void) { LOOP(__m256, F32); }
#endif
#if defined(__AVX512VNNI__)
#define WIDTH_INT8 64
#define INT8(S) OP("vpdpbusd", S)
static void int8(void) { LOOP(__m512i, INT8); }
#elif defined(__AVXVNNI__)
#define WIDTH_INT8 32
#define INT8(S) OP("{vex} vpdpbusd", S)
static void int8(void) { LOOP(__m256i, INT8); }
#elif defined(__AVX2__)
// Without dot products: products in pairs of 16 bits, and their sums.
#define WIDTH_INT8 32
#define INT8(S)                                                                                                        \
    __asm__ volatile("vpmaddubsw %2, %1, %%ymm15\n\tvpaddw %%ymm15, %0, %0" : "+x"(S) : "x"(a), "x"(b) : "xmm15");
static void int8(void) { LOOP(__m256i, INT8); }
#endif
#if defined(__AVX512BF16__)
#define WIDTH_BF16 32
#define BF16(S) OP("vdpbf16ps", S)
static void bf16(void) { LOOP(__m512, BF16); }
#endif
#elif defined(__aarch64__)
#include <arm_neon.h>
#define WIDTH_F32 4
#define F32(S) __asm__ volatile("fmla %0.4s, %1.4s, %2.4s" : "+w"(S) : "w"(a), "w"(b));
static void f32(void) { LOOP(float32x4_t, F32); }
#if defined(__ARM_FEATURE_DOTPROD)
#define WIDTH_INT8 16
#define INT8(S) __asm__ volatile("sdot %0.4s, %1.16b, %2.16b" : "+w"(S) : "w"(a), "w"(b));
static void int8(void) { LOOP(int8x16_t, INT8); }
#endif
#endif

#if !defined(WIDTH_F32)
#define WIDTH_F32 0
static void f32(void) {}
#endif
#if !defined(WIDTH_INT8)
#define WIDTH_INT8 0
static void int8(void) {}
#endif
#if !defined(WIDTH_BF16)
#define WIDTH_BF16 0
static void bf16(void) {}
#endif

// ---- all threads at once

typedef struct {
    void (*arithmetic)(void);
    void (*reading)(const unsigned char *, size_t);
    int threads;
    pthread_barrier_t barrier;
    double seconds;
} Work;
typedef struct {
    Work *work;
    int index;
} Part;

static void *run(void *argument) {
    Part *part = argument;
    Work *work = part->work;
    const size_t share = BUFFER / work->threads / 4096 * 4096;
    pthread_barrier_wait(&work->barrier);
    const double started = now();
    if (work->arithmetic)
        for (int i = 0; i < 20; ++i) work->arithmetic();
    else
        work->reading(buffer + share * part->index, share);
    pthread_barrier_wait(&work->barrier);
    if (part->index == 0) work->seconds = now() - started;
    return NULL;
}

static double seconds(void (*arithmetic)(void), void (*reading)(const unsigned char *, size_t), int threads) {
    Work work = {.arithmetic = arithmetic, .reading = reading, .threads = threads};
    Part parts[MOST];
    pthread_t ids[MOST];
    pthread_barrier_init(&work.barrier, NULL, threads);
    for (int i = 0; i < threads; ++i) {
        parts[i] = (Part){&work, i};
        if (pthread_create(ids + i, NULL, run, parts + i)) exit(1);
    }
    for (int i = 0; i < threads; ++i) pthread_join(ids[i], NULL);
    pthread_barrier_destroy(&work.barrier);
    return work.seconds;
}

int main(void) {
    static const struct {
        const char *name;
        void (*run)(const unsigned char *, size_t);
    } reads[] = {{"1 stream", read1},         {"2 streams", read2},         {"4 streams", read4},
                 {"1 stream, prefetched", read1p}, {"2 streams, prefetched", read2p},
                 {"4 streams, prefetched", read4p}};
    static const struct {
        const char *name;
        void (*run)(void);
        int width;
    } sums[] = {{"int8", int8, WIDTH_INT8}, {"f32", f32, WIDTH_F32}, {"bf16", bf16, WIDTH_BF16}};
    char test[16];
    int threads;
    while (scanf("%15s %d", test, &threads) == 2) {
        if (threads < 1 || threads > MOST) return 1;
        double best = 0;
        const char *how = "";
        if (!strcmp(test, "read")) {
            if (!buffer) {
                buffer = aligned_alloc((size_t)1 << 21, BUFFER);
                if (!buffer) return 1;
#if defined(MADV_HUGEPAGE)
                madvise(buffer, BUFFER, MADV_HUGEPAGE);
#endif
                memset(buffer, 1, BUFFER);
            }
            for (int i = 0; i < 12; ++i) {
                const double speed = BUFFER / seconds(NULL, reads[i % 6].run, threads);
                if (speed > best) best = speed, how = reads[i % 6].name;
            }
#if defined(__linux__)
        } else if (!strcmp(test, "pages")) {
            unsigned char *kept = buffer;
            buffer = mmap(NULL, BUFFER, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (buffer == MAP_FAILED) return 1;
            best = BUFFER / seconds(NULL, touch, threads), how = "once";
            munmap(buffer, BUFFER);
            buffer = kept;
#endif
        } else {
            for (size_t i = 0; i < sizeof sums / sizeof *sums; ++i) {
                if (strcmp(test, sums[i].name) || !sums[i].width) continue;
                for (int repeat = 0; repeat < 20; ++repeat) {
                    const double sent = 20.0 * ROUNDS * 12 * sums[i].width * threads;
                    const double speed = sent / seconds(sums[i].run, NULL, threads);
                    if (speed > best) best = speed;
                }
            }
        }
        printf("{\"best\": %.6g, \"how\": \"%s\"}\n", best, how);
        fflush(stdout);
    }
    return 0;
}
