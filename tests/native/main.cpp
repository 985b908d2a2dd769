// The kernels' own test program: every table's results are the scalar one's, to the bit.
//     program             tries the table that it was compiled for (BESTIARY_TEST_TABLE), or all that run here
//     program --tables    prints their names
// Prints a line a group; exit status 1 at the first difference, or the first touch of memory that is not theirs.
#include "check.h"

#if !defined(BESTIARY_TEST_TABLE)
#include "host.h"
#endif
#include <csignal>

namespace native {
char trying[400];
i64 comparisons = 0;
} // namespace native

namespace {

using namespace native;

const struct {
    const char *name;
    void (*run)(const Table &, const Table &);
} kGroups[] = {{"packing", packing},         {"rows", rows},           {"activations", activations},
               {"quantized products", products}, {"plain products", plain_products}, {"attention", attention}};

#if defined(BESTIARY_TEST_TABLE)
const Table *const kTables[] = {&table_scalar, &BESTIARY_TEST_TABLE, nullptr};
const Table *const *found() { return kTables; }
#else
const Table *const *found() { return tables(); }
#endif

#if defined(BESTIARY_FENCES)
void touched(int) { // nothing but what a signal's handler may do
    const char *const words[] = {"FAILED: ", trying, ": memory was touched that is not its\n"};
    for (const char *text : words)
        if (write(1, text, std::strlen(text)) < 0) break;
    _exit(1);
}
#endif

} // namespace

int main(int count, char **arguments) {
    const Table *const *list = found();
    if (count > 1 && !std::strcmp(arguments[1], "--tables")) {
        for (; *list; ++list) std::printf("%s\n", (*list)->name);
        return 0;
    }
#if defined(BESTIARY_FENCES)
    std::signal(SIGSEGV, touched);
    std::signal(SIGBUS, touched);
#endif
    const Table &reference = **list++;
    if (!*list) {
        std::printf("FAILED: there is no table but %s\n", reference.name);
        return 1;
    }
    for (; *list; ++list)
        for (const auto &group : kGroups) {
            comparisons = 0;
            group.run(reference, **list);
            std::printf("%s: %s: %lld comparisons\n", (*list)->name, group.name, (long long)comparisons);
            std::fflush(stdout);
        }
    return 0;
}
