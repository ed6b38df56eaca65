// An array that the host and the GPU both see.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <new>

namespace transxssm::cuda {

template <class T>
class Managed {
 public:
  template <class Count>
  explicit Managed(Count count) {
    void* memory = nullptr;
    if (cudaMallocManaged(&memory, static_cast<size_t>(count) * sizeof(T), cudaMemAttachGlobal) !=
        cudaSuccess)
      throw std::bad_alloc();
    data_ = static_cast<T*>(memory);
  }
  ~Managed() { cudaFree(data_); }
  Managed(const Managed&) = delete;
  Managed& operator=(const Managed&) = delete;
  T* data() const { return data_; }
  template <class Index>
  T& operator[](Index i) const {
    return data_[i];
  }

 private:
  T* data_ = nullptr;
};

}  // namespace transxssm::cuda
