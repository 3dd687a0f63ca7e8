// Copies to shared memory that land later, and the tensor cores: host bodies for csrc/cuda/mma.h.
//
// A copy lands when its thread waits for it; in the order warp_greedy at once, which a GPU may do as well: what reads a
// buffer that a copy was started to already is seen there.
#pragma once

#include <cstring>
#include <type_traits>

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "emulator.h"

namespace emulator {

inline void land(const Copy& copy) {
  if (copy.from)
    std::memcpy(copy.to, copy.from, 16);
  else
    std::memset(copy.to, 0, 16);
}

inline void copy_async(void* shared, const void* global, bool there) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 || (there && reinterpret_cast<uintptr_t>(global) % 16))
    fail("a copy of 16 bytes that are not aligned");
  Copies& copies = copies_of_thread();
  const Copy copy{shared, there ? global : nullptr, copies.groups};
  if (copies.at_once)
    land(copy);
  else
    copies.pending.push_back(copy);
}

inline void copies_commit() { ++copies_of_thread().groups; }

inline void copies_wait(int pending_groups) {
  Copies& copies = copies_of_thread();
  while (!copies.pending.empty() && copies.pending.front().group < copies.groups - pending_groups) {
    land(copies.pending.front());
    copies.pending.pop_front();
  }
}

inline void load_matrices(const void* row, bool transposed, uint32_t (&words)[4]) {
  const auto address = reinterpret_cast<uintptr_t>(row);
  if (address % 16) fail("a row of a matrix that is not aligned");
  const Words* lanes = warp_exchange({static_cast<uint32_t>(address), static_cast<uint32_t>(address >> 32)});
  const auto element = [&](int matrix, int r, int c) {  // of 16 bits
    const Words& given = lanes[8 * matrix + r];
    uint16_t value;
    std::memcpy(&value, reinterpret_cast<const char*>(uintptr_t{given[1]} << 32 | given[0]) + 2 * c, 2);
    return uint32_t{value};
  };
  const int high = lane() / 4, low = 2 * (lane() % 4);
  for (int m = 0; m < 4; ++m)
    words[m] = transposed ? element(m, low, high) | element(m, low + 1, high) << 16
                          : element(m, high, low) | element(m, high, low + 1) << 16;
}

inline uint32_t to_tf32(uint32_t word) {
  const bool finite = (word & 0x7f800000) != 0x7f800000;
  return finite ? (word + 0x1000) & 0xffffe000 : word;
}

// Element k of a lane's fragment words: two of 16 bits in a word, or one of TF32, of which 11 bits are read.
template <typename T>
float element(uint32_t word, int half) {
  if constexpr (std::is_same_v<T, float>) {
    word &= 0xffffe000;
    float value;
    std::memcpy(&value, &word, 4);
    return value;
  } else {
    const auto bits = static_cast<uint16_t>(word >> 16 * half);
    T value;
    std::memcpy(&value, &bits, 2);
    if constexpr (std::is_same_v<T, __half>)
      return __half2float(value);
    else
      return __bfloat162float(value);
  }
}

template <typename T>
void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  constexpr int kPerWord = 4 / sizeof(T);
  const Words* lanes = warp_exchange({a[0], a[1], a[2], a[3], b[0], b[1]});
  for (int i = 0; i < 4; ++i) {
    const int row = lane() / 4 + i / 2 * 8, column = 2 * (lane() % 4) + i % 2;
    for (int k = 0; k < 8 * kPerWord; ++k) {
      const int of_lane = k % (4 * kPerWord) / kPerWord, far = k / (4 * kPerWord), half = k % kPerWord;
      c[i] += element<T>(lanes[row % 8 * 4 + of_lane][row / 8 + 2 * far], half) *
              element<T>(lanes[column * 4 + of_lane][4 + far], half);
    }
  }
}

}  // namespace emulator
