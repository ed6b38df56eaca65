#include "tests/parallel/toy_pipeline.h"

#include <gtest/gtest.h>

#include <vector>

namespace transxssm {
namespace {

// Stage s maps every element x to w x + x^2 / 16 with w = s + 1.5; the loss is the sum of the last stage's
// outputs.
struct Toy {
  static double weight(int stage) { return stage + 1.5; }
  static double source(int replica, int step, int k, int64_t i) {
    return 0.25 * replica - 0.5 * step + 0.125 * k + 0.01 * static_cast<double>(i % 17);
  }
  static double forward(int stage, double x) { return weight(stage) * x + x * x / 16; }
  static double d_input(int stage, double x, double dy) { return dy * (weight(stage) + x / 8); }
};

class ToyStage final : public StageWork {
 public:
  ToyStage(const Mesh& mesh, int num_slots, int64_t elements)
      : stage_(mesh.coordinate().pp),
        replica_(mesh.coordinate().dp),
        first_(mesh.is_first_stage()),
        last_(mesh.is_last_stage()),
        slots_(static_cast<size_t>(num_slots)),
        elements_(elements) {}

  void begin(int step, bool evaluate) {
    step_ = step;
    evaluate_ = evaluate;
    weights_done_ = 0;
    forwards_ = 0;
    reduced_ = 0;
    loss_ = 0;
    d_weight_ = 0;
  }

  void forward(int k, int slot, const Tensor& input, const Tensor& output) override {
    ++forwards_;
    ASSERT_LT(static_cast<size_t>(slot), slots_.size());
    Slot& saved = slots_[static_cast<size_t>(slot)];
    ASSERT_FALSE(saved.used);
    ASSERT_EQ(input.empty(), first_);
    ASSERT_EQ(output.empty(), last_);
    saved.used = !evaluate_;
    saved.microbatch = k;
    saved.input = input;
    saved.x.resize(static_cast<size_t>(elements_));
    for (int64_t i = 0; i < elements_; ++i) {
      const double x = first_ ? Toy::source(replica_, step_, k, i) : input.data<double>()[i];
      saved.x[static_cast<size_t>(i)] = x;
      const double y = Toy::forward(stage_, x);
      if (last_) {
        loss_ += y;
      } else {
        output.data<double>()[i] = y;
      }
    }
  }

  void backward_input(int k, int slot, const Tensor& d_output, const Tensor& d_input) override {
    Slot& saved = slots_[static_cast<size_t>(slot)];
    ASSERT_TRUE(saved.used);
    ASSERT_EQ(saved.microbatch, k);
    ASSERT_EQ(d_output.empty(), last_);
    ASSERT_EQ(d_input.empty(), first_);
    saved.d_output = d_output;
    for (int64_t i = 0; i < elements_ && !first_; ++i) {
      const double dy = last_ ? 1 : d_output.data<double>()[i];
      d_input.data<double>()[i] = Toy::d_input(stage_, saved.x[static_cast<size_t>(i)], dy);
    }
  }

  void backward_weight(int k, int slot) override {
    Slot& saved = slots_[static_cast<size_t>(slot)];
    ASSERT_EQ(saved.microbatch, k);
    EXPECT_EQ(weights_done_++, k);  // ascending under every schedule
    for (int64_t i = 0; i < elements_; ++i) {
      const double x = saved.x[static_cast<size_t>(i)];
      ASSERT_EQ(first_ ? x : saved.input.data<double>()[i], x);  // lent until now
      d_weight_ += (last_ ? 1 : saved.d_output.data<double>()[i]) * x;
    }
    saved.used = false;
  }

  void reduce_gradients() override { ++reduced_; }

  // What one rank computes for this stage.
  void expect(int num_microbatches) const {
    double loss = 0;
    double d_weight = 0;
    const int last_stage = num_stages_ - 1;
    for (int k = 0; k < num_microbatches; ++k) {
      for (int64_t i = 0; i < elements_; ++i) {
        std::vector<double> x{Toy::source(replica_, step_, k, i)};
        for (int s = 0; s <= last_stage; ++s) x.push_back(Toy::forward(s, x.back()));
        double dy = 1;
        for (int s = last_stage; s > stage_; --s) dy = Toy::d_input(s, x[static_cast<size_t>(s)], dy);
        d_weight += dy * x[static_cast<size_t>(stage_)];
        loss += x.back();
      }
    }
    EXPECT_EQ(forwards_, num_microbatches);
    EXPECT_EQ(loss_, last_ ? loss : 0);
    EXPECT_EQ(d_weight_, evaluate_ ? 0 : d_weight);
    EXPECT_EQ(weights_done_, evaluate_ ? 0 : num_microbatches);
    EXPECT_EQ(reduced_, evaluate_ ? 0 : 1);
  }

  void set_num_stages(int n) { num_stages_ = n; }

 private:
  struct Slot {
    bool used = false;
    int microbatch = -1;
    Tensor input, d_output;
    std::vector<double> x;
  };

  const int stage_;
  const int replica_;
  const bool first_;
  const bool last_;
  int num_stages_ = 1;
  std::vector<Slot> slots_;
  const int64_t elements_;
  int step_ = 0;
  bool evaluate_ = false;
  int weights_done_ = 0;
  int forwards_ = 0;
  int reduced_ = 0;
  double loss_ = 0;
  double d_weight_ = 0;
};

}  // namespace

void check_pipeline(Mesh& mesh, const Schedule& schedule, const Shape& boundary, int steps) {
  Pipeline pipeline(mesh, schedule, boundary, DType::f64);
  ToyStage work(mesh, pipeline.num_slots(), boundary.num_elements());
  work.set_num_stages(mesh.shape().pp);
  for (int step = 0; step < steps; ++step) {
    work.begin(step, false);
    pipeline.run(work);
    work.expect(schedule.num_microbatches);
    work.begin(step, true);
    pipeline.run_forward(work, schedule.num_microbatches + step);
    work.expect(schedule.num_microbatches + step);
  }
  const int64_t one_boundary = carved_bytes(DType::f64, boundary);
  const PipelineBuffers buffers = pipeline_buffers(pipeline.schedule(), mesh.coordinate().pp);
  EXPECT_EQ(pipeline.buffer_bytes(),
            one_boundary * (buffers.receive + buffers.send_forward + buffers.send_backward));
}

}  // namespace transxssm
