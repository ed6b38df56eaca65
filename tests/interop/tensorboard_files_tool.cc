// Writes the metrics of a run that was killed at step 30 and resumed from step 20 into the folder it is
// given.
#include <cmath>
#include <cstdio>

#include "runtime/metrics.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: tensorboard_files_tool DIRECTORY\n");
    return 2;
  }
  const auto train = [&](int64_t first, int64_t last, double loss) {
    transxssm::MetricsWriter writer(argv[1], first, {});
    for (int64_t step = first; step <= last; ++step) {
      transxssm::StepMetrics metrics;
      metrics.step = step;
      metrics.loss = step == 7 ? std::nan("") : loss;
      writer.write(metrics);
      if (step % 10 == 0)
        writer.write(step,
                     std::vector<transxssm::Metric>{{"eval/loss", loss}, {"eval/bits_per_byte", loss / 2}});
    }
  };
  train(1, 30, 4);
  train(21, 40, 2);
  return 0;
}
