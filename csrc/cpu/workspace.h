// Scratch memory of the calling thread, kept between calls so that a kernel never pays page faults twice.
#pragma once

#include <cstddef>
#include <cstdint>

namespace spfde::cpu {

// What one function takes of it, given back when the Scratch goes out of scope. Everything taken meanwhile, by nested
// functions too, lies elsewhere: nobody shares memory unawares.
//
// Memory that a parallel region needs is taken before it, for all of its threads (see kernels/per_thread.h): no
// exception may leave the region, and what is thrown here then never has to.
class Scratch {
 public:
  Scratch();
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // `size` bytes, 64-byte aligned, contents undefined. Throws std::bad_alloc; what was taken before stays valid.
  void* bytes(size_t size);

 private:
  const size_t block_, used_, taken_;  // where the thread's arena stood
};

template <typename T>
static inline T* take(Scratch& scratch, int64_t count) {
  return static_cast<T*>(scratch.bytes(static_cast<size_t>(count) * sizeof(T)));
}

// values[perm[k]] for k < n, taken of `scratch`; `values` itself if perm is nullptr.
const float* permuted(const float* values, const int32_t* perm, int64_t n, int threads, Scratch& scratch);

}  // namespace spfde::cpu
