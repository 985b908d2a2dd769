// Detection of instruction sets (CPUID, and XGETBV for what the system saves; on ARM the system is asked) and of usable
// threads.
#include "host.h"
#include "pool.h"

#include <cstdio>
#include <cstring>
#include <set>
#include <string>
#include <utility>

#if defined(BESTIARY_X86)
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#elif defined(BESTIARY_ARM)
#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(_WIN32)
#include <windows.h>
#endif
#endif
#if defined(__linux__)
#include <sched.h>
#endif

namespace bestiary {

#if defined(BESTIARY_X86)
namespace {

void cpuid(unsigned leaf, unsigned sub, unsigned r[4]) {
#if defined(_MSC_VER)
    int x[4];
    __cpuidex(x, (int)leaf, (int)sub);
    for (int i = 0; i < 4; ++i) r[i] = (unsigned)x[i];
#else
    __cpuid_count(leaf, sub, r[0], r[1], r[2], r[3]);
#endif
}
unsigned long long saved_state() {
#if defined(_MSC_VER)
    return _xgetbv(0);
#else
    unsigned low, high;
    __asm__ __volatile__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (unsigned long long)high << 32 | low;
#endif
}
bool bit(unsigned x, int i) { return x >> i & 1; }

struct Found {
    bool avx2 = false, avxvnni = false, avx512 = false;
    Found() {
        unsigned r[4], s[4];
        cpuid(0, 0, r);
        if (r[0] < 7) return;
        cpuid(1, 0, r);
        cpuid(7, 0, s);
        if (!bit(r[2], 27) || !bit(r[2], 28)) return; // OSXSAVE, AVX
        const unsigned long long state = saved_state();
        avx2 = (state & 6) == 6 && bit(r[2], 12) && bit(r[2], 29) && bit(s[1], 5); // FMA, F16C, AVX2
        avx512 = avx2 && (state & 0xE6) == 0xE6 && bit(s[1], 16) && bit(s[1], 17) && bit(s[1], 30) && bit(s[1], 31) &&
                 bit(s[2], 11); // F, DQ, BW, VL, VNNI
        if (!avx2 || !s[0]) return; // the last sub-leaf of leaf 7
        cpuid(7, 1, s);
        avxvnni = bit(s[0], 4);
    }
};

} // namespace
#elif defined(BESTIARY_ARM)
namespace {

bool dot_products() {
#if defined(__linux__)
    return getauxval(AT_HWCAP) >> 20 & 1; // HWCAP_ASIMDDP
#elif defined(__APPLE__)
    return true; // every Mac with such a processor
#elif defined(_WIN32)
    return IsProcessorFeaturePresent(43); // PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE
#else
    return false;
#endif
}

} // namespace
#endif

const Table *const *tables() {
    static const Table *list[5] = {};
    static const bool filled = [] {
        int n = 0;
        list[n++] = &table_scalar;
#if defined(BESTIARY_X86)
        const Found found;
        if (found.avx2) list[n++] = &table_avx2;
#if defined(BESTIARY_AVXVNNI)
        if (found.avxvnni) list[n++] = &table_avxvnni;
#endif
        if (found.avx512) list[n++] = &table_avx512;
#elif defined(BESTIARY_ARM)
        if (dot_products()) list[n++] = &table_neon;
#endif
        return true;
    }();
    (void)filled;
    return list;
}

#if defined(__linux__)
namespace {

// The quota of this process's control group and those above it, in processors; 0 where there is none.
double quota() {
    double least = 0;
    auto take = [&](double limit, double period) {
        if (limit > 0 && period > 0 && (least == 0 || limit / period < least)) least = limit / period;
    };
    auto numbers = [](const std::string &path, double *a, double *b) {
        FILE *file = std::fopen(path.c_str(), "r");
        if (!file) return 0;
        const int n = std::fscanf(file, b ? "%lf %lf" : "%lf", a, b);
        std::fclose(file);
        return n;
    };
    FILE *file = std::fopen("/proc/self/cgroup", "r");
    if (!file) return 0;
    char line[4096];
    while (std::fgets(line, sizeof line, file)) {
        char *names = std::strchr(line, ':');
        char *path = names ? std::strchr(names + 1, ':') : nullptr;
        if (!path) continue;
        *path++ = 0;
        path[std::strcspn(path, "\n")] = 0;
        ++names;
        const bool second = !*names;
        if (!second && !std::strstr((std::string(",") + names + ",").c_str(), ",cpu,")) continue;
        const std::string root = second ? "/sys/fs/cgroup" : "/sys/fs/cgroup/cpu";
        for (std::string below = path;; below.resize(below.rfind('/'))) { // a container may see only the top
            const std::string folder = root + (below == "/" ? "" : below);
            double limit = 0, period = 0;
            if (second) {
                if (numbers(folder + "/cpu.max", &limit, &period) == 2) take(limit, period);
            } else if (numbers(folder + "/cpu.cfs_quota_us", &limit, nullptr) == 1 &&
                       numbers(folder + "/cpu.cfs_period_us", &period, nullptr) == 1) {
                take(limit, period);
            }
            if (below.empty() || below.rfind('/') == std::string::npos) break;
        }
    }
    std::fclose(file);
    return least;
}

// Distinct (package, core) pairs among the processors of the mask.
int physical_cores(const cpu_set_t &mask) {
    std::set<std::pair<int, int>> cores;
    for (int i = 0; i < CPU_SETSIZE; ++i) {
        if (!CPU_ISSET(i, &mask)) continue;
        int ids[2] = {-1, -1};
        const char *const names[2] = {"physical_package_id", "core_id"};
        for (int j = 0; j < 2; ++j) {
            const std::string path = "/sys/devices/system/cpu/cpu" + std::to_string(i) + "/topology/" + names[j];
            FILE *file = std::fopen(path.c_str(), "r");
            if (!file) return 0;
            if (std::fscanf(file, "%d", ids + j) != 1) ids[j] = -1;
            std::fclose(file);
        }
        cores.insert({ids[0], ids[1]});
    }
    return (int)cores.size();
}

} // namespace
#endif

int allowed_cpus() {
#if defined(__linux__)
    cpu_set_t mask;
    if (sched_getaffinity(0, sizeof mask, &mask) == 0) return CPU_COUNT(&mask);
#endif
    const int count = (int)std::thread::hardware_concurrency();
    return count < 1 ? 1 : count;
}

int usable_threads() {
    int count = allowed_cpus();
#if defined(__linux__)
    cpu_set_t mask;
    if (sched_getaffinity(0, sizeof mask, &mask) == 0) {
        const int cores = physical_cores(mask);
        if (cores > 0 && cores < count) count = cores;
    }
    const double limit = quota();
    if (limit > 0 && limit < count) count = (int)limit;
#endif
    return count < 1 ? 1 : count;
}

} // namespace bestiary
