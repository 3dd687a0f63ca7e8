// Asynchronous copies to shared memory, and the tensor cores: what sm_80 and later have as PTX instructions.
//
// A row-major A [16 x kStep<T>] times a column-major B [kStep<T> x 8] is added to C [16 x 8] by the lanes of a warp,
// each of which holds a fragment: 4 words of A, 2 of B, 4 floats of C (rows lane / 4 and lane / 4 + 8, columns 2 (lane
// % 4) and the next). A word is two 16-bit elements, or one of float32. See the PTX manual, "Matrix multiply-accumulate
// instructions".
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cuda/device.h"

namespace spfde::cuda {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr bool kHasMma = false;
#else
constexpr bool kHasMma = true;
#endif

template <typename T>
constexpr int kPiece = 16 / sizeof(T);  // elements that are copied at once
template <typename T>
constexpr int kStep = 2 * kPiece<T>;  // elements that are summed by one instruction

// Copies 16 bytes, or writes as many zeros unless `there`; lands at a copies_wait. Both addresses are aligned to 16.
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool there) {
#ifdef __CUDACC__
  const auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(there ? 16 : 0) : "memory");
#else
  emulator::copy_async(shared, global, there);
#endif
}

// Closes this thread's group of copies.
__device__ __forceinline__ void copies_commit() {
#ifdef __CUDACC__
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  emulator::copies_commit();
#endif
}

// Waits for this thread's copies, but for those of the latest kPending groups.
template <int kPending>
__device__ __forceinline__ void copies_wait() {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#else
  emulator::copies_wait(kPending);
#endif
}

// Four matrices of 8 rows of 16 bytes: lane 8 m + r gives the address of row r of matrix m. Word m of a lane is word
// lane % 4 of row lane / 4; with kTransposed (16-bit elements) elements lane / 4 of rows 2 (lane % 4) and the next.
template <bool kTransposed>
__device__ __forceinline__ void load_matrices(const void* row, uint32_t (&words)[4]) {
#ifdef __CUDACC__
  const auto from = static_cast<unsigned>(__cvta_generic_to_shared(row));
  if constexpr (kTransposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(from)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(from)
                 : "memory");
#else
  emulator::load_matrices(row, kTransposed, words);
#endif
}

__device__ __forceinline__ float as_float(uint32_t word) {
  float value;
  memcpy(&value, &word, 4);
  return value;
}

__device__ __forceinline__ uint32_t as_word(float value) {
  uint32_t word;
  memcpy(&word, &value, 4);
  return word;
}

#ifdef __CUDACC__
#define SPFDE_MMA(shape_and_types)                               \
  asm volatile("mma.sync.aligned." shape_and_types               \
               " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, " \
               "{%0, %1, %2, %3};"                               \
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])  \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
#endif

// C += A B. Of float32 the leading 11 bits of each factor count (TF32).
template <typename T>
__device__ __forceinline__ void multiply_once(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef __CUDACC__
  if constexpr (std::is_same_v<T, __half>)
    SPFDE_MMA("m16n8k16.row.col.f32.f16.f16.f32");
  else if constexpr (std::is_same_v<T, __nv_bfloat16>)
    SPFDE_MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
  else
    SPFDE_MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
#else
  emulator::multiply<T>(c, a, b);
#endif
}

#undef SPFDE_MMA

// A float32 word rounded to the 11 leading bits that TF32 has, ties away from zero.
__device__ __forceinline__ uint32_t to_tf32(uint32_t word) {
#ifdef __CUDACC__
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(as_float(word)));
  return rounded;
#else
  return emulator::to_tf32(word);
#endif
}

// Float32 words as TF32, and what that leaves of them: NaN of what is not finite.
template <int kCount>
__device__ __forceinline__ void split(const uint32_t (&words)[kCount], uint32_t (&head)[kCount],
                                      uint32_t (&rest)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    head[i] = to_tf32(words[i]);
    rest[i] = to_tf32(as_word(as_float(words[i]) - as_float(head[i])));
  }
}

// C += A B. kExact: float32 in three products of TF32, heads and rests of the factors crosswise: what is left out is
// 2^-22 of each product (Markidis et al. 2018, "NVIDIA tensor core programmability, performance and precision").
template <typename T, bool kExact>
__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<T, float>) {
    uint32_t a_head[4], a_rest[4], b_head[2], b_rest[2];
    split(a, a_head, a_rest);
    split(b, b_head, b_rest);
    if constexpr (kExact) {  // the small ones first
      multiply_once<T>(c, a_rest, b_head);
      multiply_once<T>(c, a_head, b_rest);
    }
    multiply_once<T>(c, a_head, b_head);
  } else {
    multiply_once<T>(c, a, b);
  }
}

}  // namespace spfde::cuda
