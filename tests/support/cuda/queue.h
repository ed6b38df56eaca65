// Streams, events and errors of the emulated device.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>

namespace transxssm::cuda::emulated {

// Runs `work` after all that the stream was given before: now, or when somebody waits for it
// (Settings::queues). cudaErrorLaunchFailure where something ran and failed; what it threw is then the text
// of that error.
cudaError_t enqueue(cudaStream_t stream, std::function<void()> work);
// cudaErrorStreamCaptureUnsupported, and the capture is void, where the stream captures; where any stream
// does that this thread made to.
cudaError_t refuse_to_record(cudaStream_t stream);
cudaError_t refuse_while_recording();
// Runs all that the stream still has to do; of every stream of this thread's device.
cudaError_t drain(cudaStream_t stream);
cudaError_t drain_all();
// What cudaSetDevice set for this thread.
int current_device();
// Notes the error for cudaGetLastError and returns it.
cudaError_t result(cudaError_t status);

}  // namespace transxssm::cuda::emulated
