// cuda_tests [part of a case's name]: every case in every order of the threads; exit status 1 if one fails.
#include <cstring>

#include "cases.h"

int main(int count, char** arguments) {
  const char* only = count > 1 ? arguments[1] : "";
  std::vector<test::Case> cases = linear_cases();
  for (const auto& more : {block_cases(), block_conv2d_cases(), conv2d_cases(), norm_act_cases(), scatter_cases()})
    cases.insert(cases.end(), more.begin(), more.end());
  const std::pair<const char*, emulator::Schedule> schedules[] = {
      {"lock-step", {emulator::Order::lock_step}},
      {"warp-greedy", {emulator::Order::warp_greedy}},
      {"random", {emulator::Order::random, 1}},
  };
  int ran = 0;
  for (const auto& [order, schedule] : schedules) {
    test::worst = 0;
    emulator::schedule(schedule);
    for (const test::Case& each : cases) {
      if (!std::strstr(each.name.c_str(), only)) continue;
      const int before = test::failures;
      each.run();
      ++ran;
      if (test::failures > before) std::printf("  in the order %s: %s\n", order, each.name.c_str());
    }
    std::printf("%-12s worst error %.2f of what is allowed\n", order, test::worst);
  }
  std::printf("%d runs, %d failures\n", ran, test::failures);
  return test::failures || !ran;
}
