// The native core by itself, without Python or torch: every op against sums in double. SPFDE_ISA chooses the copy.
#include <cstdlib>

#include "cases.h"
#include "check.h"
#include "cpu/isa.h"

void test_isas();
void test_types();
void test_out_of_memory();

int main() {
  std::printf("instruction set %s\n", spfde::cpu::isa().name);
  test_isas();
  test_types();
  for (const auto& cases : {linear_cases(), conv2d_cases(), conv_chain_cases(), norm_act_cases()})
    for (const test::Run& run : cases) run();
  test_out_of_memory();
  std::printf(test::failures ? "%d failures\n" : "all passed\n", test::failures);
  return test::failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
