// The native core by itself, without Python or torch: every op against sums in double. SPFDE_ISA chooses the copy.
#include <cstdlib>

#include "check.h"
#include "spfde/isa.h"

void test_linear();
void test_conv2d();
void test_norm();

namespace {

void test_isas() {
  const std::vector<spfde::Isa> runnable = spfde::runnable_isas();
  test::expect(!runnable.empty(), "an instruction set that runs here");
#if defined(__aarch64__)
  test::expect(runnable == std::vector<spfde::Isa>{spfde::Isa::neon}, "aarch64 runs NEON");
#endif
}

}  // namespace

int main() {
  std::printf("instruction set %s\n", spfde::isa_name(spfde::isa()));
  test_isas();
  test_linear();
  test_conv2d();
  test_norm();
  std::printf(test::failures ? "%d failures\n" : "all passed\n", test::failures);
  return test::failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
