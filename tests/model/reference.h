// The whole network and its loss by definition: double, plain loops, and no code of the program. The
// state-space mixer is its recurrence, attention an explicit masked softmax, the convolution a sum over its
// window, and a rotation uses the position inside the document. What the program computes in chunks, tiles,
// fused products and f32 must equal this.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "model/config.h"
#include "runtime/data/batch.h"

namespace transxssm {

class Reference {
 public:
  // Every parameter of the network by its name, row-major.
  using Weights = std::map<std::string, std::vector<double>>;

  // Documents are those of batch.document; batch.position is not read.
  Reference(const ModelConfig& config, const Batch& batch, Weights weights);

  // Mean cross-entropy over the valid targets, in nats.
  double loss() const;
  // Derivative of the loss along `direction`, which has one element for each of parameter `name`: the central
  // difference of `step`.
  double derivative(const std::string& name, const std::vector<double>& direction, double step = 1e-5);

 private:
  // One row of `width` numbers for each token; the rows of the batch follow one another.
  struct Matrix {
    Matrix(int64_t tokens, int64_t width_) : width(width_), data(static_cast<size_t>(tokens * width_)) {}
    double* operator[](int64_t token) { return data.data() + token * width; }
    const double* operator[](int64_t token) const { return data.data() + token * width; }
    int64_t width;
    std::vector<double> data;
  };
  struct Spectrum {
    std::vector<double> frequency;  // [width / 2]
    double factor = 1;              // of cos and sin
  };

  const std::vector<double>& weight(const std::string& name) const;
  Matrix embedding() const;
  Matrix layer(int64_t index, Matrix x) const;
  Matrix attention(const std::string& prefix, const Matrix& x) const;
  Matrix state_space(const std::string& prefix, const Matrix& x) const;
  Matrix feed_forward(const std::string& prefix, const Matrix& x) const;
  Matrix linear(const std::string& name, const Matrix& x) const;
  Matrix convolution(const std::string& prefix, const Matrix& x) const;
  Matrix norm(const std::string& name, const Matrix& x, int64_t group_width) const;
  Spectrum spectrum(int64_t width) const;
  void rotate(Matrix& x, int64_t width) const;
  void scale_by_log_n(Matrix& x) const;
  double head(const Matrix& x) const;
  double loss_from(int64_t first_layer, Matrix x) const;

  ModelConfig config_;
  Weights weights_;
  int64_t tokens_, row_length_;
  std::vector<int64_t> first_;  // the first token of each token's document
  std::vector<int64_t> input_, target_;
  std::vector<bool> valid_;
  std::vector<Matrix> inputs_;  // of each layer, then of the head, at the weights of the constructor
};

}  // namespace transxssm
