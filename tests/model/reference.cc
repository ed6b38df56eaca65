#include "tests/model/reference.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <stdexcept>

namespace transxssm {
namespace {

double sigmoid(double x) {
  return 1 / (1 + std::exp(-x));
}
double silu(double x) {
  return x * sigmoid(x);
}
double softplus(double x) {
  return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x));
}

double dot(const double* a, const double* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

}  // namespace

Reference::Reference(const ModelConfig& config, const Batch& batch, Weights weights)
    : config_(config),
      weights_(std::move(weights)),
      tokens_(batch.rows() * batch.tokens()),
      row_length_(batch.tokens()) {
  for (int64_t b = 0; b < batch.rows(); ++b) {
    for (int64_t t = 0; t < batch.tokens(); ++t) {
      const bool start =
          t == 0 || batch.document.at<int32_t>({b, t}) != batch.document.at<int32_t>({b, t - 1});
      first_.push_back(start ? b * row_length_ + t : first_.back());
      input_.push_back(batch.input.at<int32_t>({b, t}));
      target_.push_back(batch.target.at<int32_t>({b, t}));
      valid_.push_back(batch.valid.at<uint8_t>({b, t}) != 0);
    }
  }
  inputs_.push_back(embedding());
  for (int64_t i = 0; i < config_.num_layers; ++i) inputs_.push_back(layer(i, inputs_.back()));
}

double Reference::loss() const {
  return head(inputs_.back());
}

double Reference::derivative(const std::string& name, const std::vector<double>& direction, double step) {
  std::vector<double>& w = weights_.at(name);
  const std::vector<double> saved = w;
  const std::string layers = "model.layers.";
  // Only what comes after the parameter is computed again.
  int64_t first_layer = 0;
  if (name.starts_with(layers)) first_layer = std::stoll(name.substr(layers.size()));
  if (name.starts_with("model.final_layernorm") || name.starts_with("lm_head"))
    first_layer = config_.num_layers;
  auto loss_at = [&](double distance) {
    for (size_t i = 0; i < w.size(); ++i) w[i] = saved[i] + distance * direction.at(i);
    const bool embeds = name.starts_with("model.word_embed");
    return loss_from(first_layer, embeds ? embedding() : inputs_[static_cast<size_t>(first_layer)]);
  };
  const double difference = loss_at(step) - loss_at(-step);
  w = saved;
  return difference / (2 * step);
}

double Reference::loss_from(int64_t first_layer, Matrix x) const {
  for (int64_t i = first_layer; i < config_.num_layers; ++i) x = layer(i, std::move(x));
  return head(x);
}

const std::vector<double>& Reference::weight(const std::string& name) const {
  const auto found = weights_.find(name);
  if (found == weights_.end()) throw std::out_of_range("the model has no parameter " + name);
  return found->second;
}

Reference::Matrix Reference::embedding() const {
  Matrix x(tokens_, config_.d_model);
  const double* table = weight("model.word_embed.weight").data();
  for (int64_t t = 0; t < tokens_; ++t)
    std::copy_n(table + input_[static_cast<size_t>(t)] * x.width, x.width, x[t]);
  return x;
}

Reference::Matrix Reference::layer(int64_t index, Matrix x) const {
  const std::string prefix = "model.layers." + std::to_string(index) + ".";
  auto add = [&](const std::string& residual, const Matrix& update) {
    const std::vector<double> ones(static_cast<size_t>(x.width), 1);
    const std::vector<double>& w = config_.learned_residual ? weight(prefix + residual) : ones;
    for (int64_t t = 0; t < tokens_; ++t)
      for (int64_t d = 0; d < x.width; ++d) x[t][d] = w[static_cast<size_t>(d)] * x[t][d] + update[t][d];
  };
  const Matrix mixed = norm(prefix + "pre_sequence_layernorm.weight", x, x.width);
  add("post_sequence_residual.weight",
      config_.is_attention(index) ? attention(prefix + "attn.", mixed) : state_space(prefix + "ssd.", mixed));
  if (config_.d_ff > 0)
    add("post_state_residual.weight",
        feed_forward(prefix + "feed_forward.", norm(prefix + "pre_state_layernorm.weight", x, x.width)));
  return x;
}

Reference::Matrix Reference::attention(const std::string& prefix, const Matrix& x) const {
  const int64_t heads = config_.num_heads, width = config_.head_width();
  Matrix q = linear(prefix + "q_proj.weight", x), k = linear(prefix + "k_proj.weight", x);
  const Matrix v = linear(prefix + "v_proj.weight", x);
  if (config_.attention_rope) {
    rotate(q, width);
    rotate(k, width);
  }
  if (config_.log_n_scale) scale_by_log_n(q);
  Matrix y(tokens_, heads * width);
  for (int64_t t = 0; t < tokens_; ++t) {
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t shared = h * config_.kv_heads() / heads * width;
      const int64_t first = first_[static_cast<size_t>(t)];
      std::vector<double> p;
      for (int64_t s = first; s <= t; ++s)
        p.push_back(dot(q[t] + h * width, k[s] + shared, width) / std::sqrt(static_cast<double>(width)));
      const double largest = *std::max_element(p.begin(), p.end());
      double sum = 0;
      for (double& score : p) sum += score = std::exp(score - largest);
      for (int64_t s = first; s <= t; ++s)
        for (int64_t d = 0; d < width; ++d)
          y[t][h * width + d] += p[static_cast<size_t>(s - first)] / sum * v[s][shared + d];
    }
  }
  return linear(prefix + "o_proj.weight", y);
}

Reference::Matrix Reference::state_space(const std::string& prefix, const Matrix& x) const {
  const int64_t heads = config_.ssd_heads(), width = config_.head_width(), states = config_.d_state;
  Matrix X = linear(prefix + "x_proj.weight", x), B = linear(prefix + "b_proj.weight", x),
         C = linear(prefix + "c_proj.weight", x);
  const Matrix u = linear(prefix + "dt_proj.weight", x);
  if (config_.ssd_position == SsdPosition::conv1d) {
    X = convolution(prefix + "x_conv.", X);
    B = convolution(prefix + "b_conv.", B);
    C = convolution(prefix + "c_conv.", C);
  }
  if (config_.ssd_position == SsdPosition::rope) {
    rotate(B, states);
    rotate(C, states);
  }
  if (config_.log_n_scale) scale_by_log_n(C);

  Matrix y(tokens_, heads * width);
  for (int64_t h = 0; h < heads; ++h) {
    const auto head = static_cast<size_t>(h);
    const int64_t group = h * config_.groups() / heads * states;
    const double a = -std::exp(weight(prefix + "A_log")[head]), dt_bias = weight(prefix + "dt_bias")[head];
    const double skip = config_.d_skip ? weight(prefix + "D")[head] : 0;
    std::vector<double> state;  // [width, states]
    for (int64_t t = 0; t < tokens_; ++t) {
      if (t == first_[static_cast<size_t>(t)]) state.assign(static_cast<size_t>(width * states), 0);
      const double dt = softplus(u[t][h] + dt_bias), decay = std::exp(a * dt);
      for (int64_t d = 0; d < width; ++d) {
        double* s = state.data() + d * states;
        const double input = X[t][h * width + d];
        for (int64_t n = 0; n < states; ++n) s[n] = decay * s[n] + dt * input * B[t][group + n];
        y[t][h * width + d] = dot(s, C[t] + group, states) + skip * input;
      }
    }
  }
  if (config_.ssd_gate) {
    const Matrix z = linear(prefix + "z_proj.weight", x);
    for (size_t i = 0; i < y.data.size(); ++i) y.data[i] *= silu(z.data[i]);
    y = norm(prefix + "norm.weight", y, y.width / config_.groups());
  }
  return linear(prefix + "out_proj.weight", y);
}

Reference::Matrix Reference::feed_forward(const std::string& prefix, const Matrix& x) const {
  Matrix y = linear(prefix + "gate_proj.weight", x);
  const Matrix up = linear(prefix + "up_proj.weight", x);
  for (size_t i = 0; i < y.data.size(); ++i) y.data[i] = silu(y.data[i]) * up.data[i];
  return linear(prefix + "down_proj.weight", y);
}

// `name` is a matrix [out, in].
Reference::Matrix Reference::linear(const std::string& name, const Matrix& x) const {
  const std::vector<double>& w = weight(name);
  const std::string bias_name = name.substr(0, name.rfind('.')) + ".bias";
  const auto bias = weights_.find(bias_name);
  Matrix y(tokens_, static_cast<int64_t>(w.size()) / x.width);
  for (int64_t t = 0; t < tokens_; ++t)
    for (int64_t o = 0; o < y.width; ++o)
      y[t][o] = dot(x[t], w.data() + o * x.width, x.width) +
                (bias == weights_.end() ? 0 : bias->second[static_cast<size_t>(o)]);
  return y;
}

Reference::Matrix Reference::convolution(const std::string& prefix, const Matrix& x) const {
  const int64_t kernel = config_.conv_kernel;
  const std::vector<double>&w = weight(prefix + "weight"),
        &bias = weight(prefix + "bias");  // [width, kernel]
  Matrix y(tokens_, x.width);
  for (int64_t t = 0; t < tokens_; ++t) {
    for (int64_t c = 0; c < x.width; ++c) {
      double sum = bias[static_cast<size_t>(c)];
      for (int64_t back = 0; back < kernel && t - back >= first_[static_cast<size_t>(t)]; ++back)
        sum += w[static_cast<size_t>(c * kernel + kernel - 1 - back)] * x[t - back][c];
      y[t][c] = silu(sum);
    }
  }
  return y;
}

// RMSNorm of each `group_width` channels by themselves.
Reference::Matrix Reference::norm(const std::string& name, const Matrix& x, int64_t group_width) const {
  const std::vector<double>& w = weight(name);
  Matrix y(tokens_, x.width);
  for (int64_t t = 0; t < tokens_; ++t) {
    for (int64_t first = 0; first < x.width; first += group_width) {
      const double* group = x[t] + first;
      const double mean = dot(group, group, group_width) / static_cast<double>(group_width);
      const double rstd = 1 / std::sqrt(mean + config_.norm_eps);
      for (int64_t c = first; c < first + group_width; ++c)
        y[t][c] = x[t][c] * rstd * w[static_cast<size_t>(c)];
    }
  }
  return y;
}

// Frequencies of pairs (j, j + width / 2). dynamic: the base grows with the length of the row ("NTK-aware");
// yarn (arXiv 2309.00071): pairs that turn more than 32 times in the original length keep their frequency,
// those that turn less than once have it divided, and between them it is blended.
Reference::Spectrum Reference::spectrum(int64_t width) const {
  const double d = static_cast<double>(width), scale = config_.rope_scaling_factor;
  const auto original = static_cast<double>(config_.rope_original_length);
  Spectrum result;
  double base = config_.rope_base;
  if (config_.rope_scaling == RopeScaling::dynamic) {
    const double n = std::max(static_cast<double>(row_length_), original);
    base *= std::pow(scale * n / original - (scale - 1), d / (d - 2));
  }
  for (int64_t j = 0; j < width / 2; ++j)
    result.frequency.push_back(std::pow(base, -2 * static_cast<double>(j) / d));
  if (config_.rope_scaling == RopeScaling::linear)
    for (double& f : result.frequency) f /= scale;
  // Wave lengths, in tokens: long ones are divided, short ones kept, and those between blended (Llama 3.1).
  if (config_.rope_scaling == RopeScaling::llama3) {
    const double longest = original / config_.rope_low_freq_factor,
                 shortest = original / config_.rope_high_freq_factor;
    for (double& f : result.frequency) {
      const double wave = 2 * std::numbers::pi / f;
      const double smooth = (original / wave - config_.rope_low_freq_factor) /
                            (config_.rope_high_freq_factor - config_.rope_low_freq_factor);
      if (wave > longest)
        f /= scale;
      else if (wave >= shortest)
        f = (1 - smooth) * f / scale + smooth * f;
    }
  }
  if (config_.rope_scaling == RopeScaling::yarn) {
    // The pair that turns `turns` times.
    auto pair = [&](double turns) {
      return d * std::log(original / (turns * 2 * std::numbers::pi)) / (2 * std::log(base));
    };
    const double low = std::max(std::floor(pair(32)), 0.0);
    const double high = std::max(std::min(std::ceil(pair(1)), d - 1), low + 0.001);
    for (size_t j = 0; j < result.frequency.size(); ++j) {
      const double divided = std::clamp((static_cast<double>(j) - low) / (high - low), 0.0, 1.0);
      result.frequency[j] *= 1 - divided + divided / scale;
    }
    result.factor = 0.1 * std::log(scale) + 1;
  }
  return result;
}

// Every `width` neighbouring channels, by the position inside the document.
void Reference::rotate(Matrix& x, int64_t width) const {
  const Spectrum s = spectrum(width);
  for (int64_t t = 0; t < tokens_; ++t) {
    const auto position = static_cast<double>(t - first_[static_cast<size_t>(t)]);
    for (int64_t j = 0; j < width / 2; ++j) {
      const double angle = position * s.frequency[static_cast<size_t>(j)];
      const double cosine = s.factor * std::cos(angle), sine = s.factor * std::sin(angle);
      for (double* head = x[t]; head < x[t] + x.width; head += width) {
        const double a = head[j], b = head[j + width / 2];
        head[j] = a * cosine - b * sine;
        head[j + width / 2] = b * cosine + a * sine;
      }
    }
  }
}

void Reference::scale_by_log_n(Matrix& x) const {
  const double base = std::log(static_cast<double>(config_.log_n_base()));
  for (int64_t t = 0; t < tokens_; ++t) {
    const auto n = static_cast<double>(t - first_[static_cast<size_t>(t)] + 1);
    for (int64_t c = 0; c < x.width; ++c) x[t][c] *= std::max(1.0, std::log(n) / base);
  }
}

double Reference::head(const Matrix& x) const {
  const std::string name = config_.tie_embeddings ? "model.word_embed.weight" : "lm_head.weight";
  const Matrix logits = linear(name, norm("model.final_layernorm.weight", x, x.width));
  double sum = 0;
  int64_t targets = 0;
  for (int64_t t = 0; t < tokens_; ++t) {
    if (!valid_[static_cast<size_t>(t)]) continue;
    double z = 0;
    for (int64_t v = 0; v < logits.width; ++v) z += std::exp(logits[t][v]);
    sum += std::log(z) - logits[t][target_[static_cast<size_t>(t)]];
    ++targets;
  }
  return sum / static_cast<double>(targets);
}

}  // namespace transxssm
