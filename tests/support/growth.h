// How the time of something grows with its input, measured so that a busy machine does not matter: processor
// time of this thread, the least of several runs.
#pragma once

#include <malloc.h>

#include <algorithm>
#include <cstddef>
#include <ctime>
#include <limits>

namespace transxssm {

// The ratio of the time of run(4 * n) to that of run(n); about 4 where time is proportional to n, 16 where it
// is quadratic. Several attempts, as long as it is above `limit`; compare the result with that.
template <class Run>
double growth(size_t n, Run&& run, double limit = 6) {
  // Memory that was freed stays with this process: what a kernel, or a hypervisor behind it, takes to give
  // new pages is no time of the run's, and the larger run asks for more of them.
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
  const auto seconds = [&](size_t size) {
    double least = std::numeric_limits<double>::infinity();
    for (int repeat = 0; repeat < 3; ++repeat) {
      timespec begin{}, end{};
      clock_gettime(CLOCK_THREAD_CPUTIME_ID, &begin);
      run(size);
      clock_gettime(CLOCK_THREAD_CPUTIME_ID, &end);
      least = std::min(least, static_cast<double>(end.tv_sec - begin.tv_sec) +
                                  1e-9 * static_cast<double>(end.tv_nsec - begin.tv_nsec));
    }
    return least;
  };
  double ratio = std::numeric_limits<double>::infinity();
  for (int attempt = 0; attempt < 12 && ratio >= limit; ++attempt)
    ratio = std::min(ratio, seconds(4 * n) / seconds(n));
  return ratio;
}

}  // namespace transxssm
