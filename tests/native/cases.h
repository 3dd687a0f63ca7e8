// All drawn problems: each runs the ops of one problem and compares them with sums in double.
#pragma once

#include <functional>
#include <vector>

namespace test {
using Run = std::function<void()>;
}

std::vector<test::Run> linear_cases();      // spmm, sddmm, their block forms, scatter and gather
std::vector<test::Run> conv2d_cases();      // conv2d, its gradients, and their block forms
std::vector<test::Run> conv_chain_cases();  // convolutions one behind the other
std::vector<test::Run> norm_act_cases();    // norm_act and its gradients
