#include "launch/plan.h"

#include <fmt/format.h>

#include <algorithm>

#include "runtime/format.h"
#include "launch/run_length.h"
#include "parallel/local.h"
#include "parallel/pipeline.h"

namespace transxssm {
namespace {

RankMemory rank_memory(const TrainConfig& config, const StageCut& cut, int tp_rank,
                       const PipelineBuffers& buffers, const Device& device) {
  const Precision precision = precision_of(config, device);
  const auto alone = single_rank();  // only declares: nothing is sent
  const ModelConfig model = model_config(config);
  const int64_t rows = config.parallel().microbatch_size(), tokens = config.data().sequence_length();
  const Network network(model, Shard::of(model, config.parallel().tp(), tp_rank), cut, *alone, tokens,
                        nullptr, precision);
  const ActivationBytes activations =
      TrainingWork::activation_bytes(network, rows, tokens, recompute_policy(config));
  const int64_t elements = network.parameters().num_elements();
  const int64_t weights = elements * dtype_bytes(DType::f32);
  const int64_t rounded = precision.activation == DType::f32 ? 0 : elements * dtype_bytes(DType::bf16);
  return {.weights = weights + rounded + network.parameters().packed_bytes(device),
          .gradients = weights,
          .optimizer = 2 * weights,
          .activations = buffers.num_slots * activations.slot + activations.pending,
          .buffers = buffers.bytes({rows, tokens, model.d_model}, precision.residual) +
                     TokenRows::bytes(model, num_microbatches(config) * rows, tokens) +
                     network.table_bytes()};
}

}  // namespace

MeshShape mesh_shape(const TrainConfig& config) {
  const auto& p = config.parallel();
  return {.pp = p.pp(), .dp = p.dp(), .cp = p.cp(), .tp = p.tp()};
}

Schedule pipeline_schedule(const TrainConfig& config) {
  const int stages = config.parallel().pp();
  const int microbatches = static_cast<int>(num_microbatches(config));
  return config.parallel().pipeline() == "gpipe" ? gpipe_schedule(stages, microbatches)
                                                 : one_f_one_b_schedule(stages, microbatches);
}

Recompute recompute_policy(const TrainConfig& config) {
  return config.parallel().recompute() == "layer" ? Recompute::layer : Recompute::keep;
}

Precision precision_of(const TrainConfig& config, const Device& device) {
  const auto& p = config.precision();
  const bool bf16 = p.compute() == "bf16" || (p.compute() == "auto" && !device.is_cpu());
  Precision precision = bf16 ? Precision::bf16() : Precision::f32();
  if (p.residual() == "f32") precision.residual = DType::f32;
  precision.deterministic = p.deterministic();
  return precision;
}

void check_precision(const TrainConfig& config, const Device& device) {
  if (!device.is_cpu() && precision_of(config, device).activation == DType::f32)
    throw UsageError(
        "precision.compute is f32, but GPUs compute in bf16: set precision.compute=bf16 (or auto), or "
        "parallel.device=cpu");
}

Plan make_plan(const TrainConfig& config, const Device& device) {
  const ModelConfig model = model_config(config);
  const int64_t tokens = config.data().sequence_length();
  Plan plan;
  plan.mesh = mesh_shape(config);
  plan.num_parameters = num_parameters(model);
  plan.flops_per_token = flops_per_token(model, tokens);
  plan.num_microbatches = num_microbatches(config);
  const Schedule lowered = lower(pipeline_schedule(config));
  ScheduleCosts costs;
  int stage = 0;
  for (const StageCut& cut : cut_layers(model, tokens, plan.mesh.pp)) {
    StagePlan s{
        .cut = cut, .pattern = layer_pattern(model, cut), .cost = stage_cost_fraction(model, cut, tokens)};
    const PipelineBuffers buffers = pipeline_buffers(lowered, stage);
    for (int tp_rank = 0; tp_rank < plan.mesh.tp; ++tp_rank) {
      const RankMemory memory = rank_memory(config, cut, tp_rank, buffers, device);
      if (memory.total() > s.memory.total()) s.memory = memory;
    }
    costs.stages.push_back({s.cost, s.cost, s.cost});
    plan.stages.push_back(std::move(s));
    ++stage;
  }
  plan.bubble = validate(lowered, costs).bubble;
  plan.checkpoint_bytes = plan.num_parameters * 3 * dtype_bytes(DType::f32);
  return plan;
}

std::string to_text(const Plan& plan, const TrainConfig& config) {
  const ModelConfig model = model_config(config);
  const auto& p = config.parallel();
  std::string text = fmt::format(
      "model     {} parameters: {} layers {}, d_model {}, {} heads, d_state {}, vocabulary {}; {:.1f} MFLOP "
      "a token\n"
      "mesh      {} ranks = {}\n"
      "step      {} rows of {} tokens = {} tokens; {} of {} in {} microbatches of {} on each replica, bubble "
      "{:.1f} %\n",
      format_count(plan.num_parameters), model.num_layers,
      layer_pattern(model, {.first_layer = 0, .num_layers = static_cast<int>(model.num_layers)}),
      model.d_model, model.num_heads, model.d_state, model.vocab_size, plan.flops_per_token / 1e6,
      plan.mesh.size(), plan.mesh.to_string(), p.global_batch(), config.data().sequence_length(),
      format_count(tokens_per_step(config)), p.pipeline(), plan.num_microbatches * p.microbatch_size(),
      plan.num_microbatches, p.microbatch_size(), 100 * plan.bubble);
  for (size_t s = 0; s < plan.stages.size(); ++s) {
    const StagePlan& stage = plan.stages[s];
    const RankMemory& m = stage.memory;
    text += fmt::format(
        "stage {:<3} {}layers {}-{} {}{}: {:.1f} % of the FLOPs; {} a rank = weights {} + gradients {} + "
        "AdamW {} + "
        "activations {} + buffers {}\n",
        s, stage.cut.has_embedding ? "embedding, " : "", stage.cut.first_layer,
        stage.cut.first_layer + stage.cut.num_layers - 1, stage.pattern, stage.cut.has_head ? ", head" : "",
        100 * stage.cost, format_bytes(m.total()), format_bytes(m.weights), format_bytes(m.gradients),
        format_bytes(m.optimizer), format_bytes(m.activations), format_bytes(m.buffers));
  }
  text += fmt::format("run       {} steps = {} tokens; checkpoints of {} {}", steps_left(config),
                      format_count(tokens_at_end(config)), format_bytes(plan.checkpoint_bytes),
                      config.checkpoint().every_steps() > 0
                          ? fmt::format("every {} steps", config.checkpoint().every_steps())
                          : std::string("at the end"));
  return text;
}

}  // namespace transxssm
