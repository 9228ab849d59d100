// A TFLite delegate with the external-delegate ABI that behaves as well, or as badly, as it is told to.
//
// It stands for a board vendor's driver in the tests: it takes nodes away from the built-in kernels, computes
// them on its own, and on demand computes wrongly, refuses, crashes or hangs at a named moment. It links
// nothing of TFLite: everything goes through the context that the interpreter passes in, so the headers must
// be those of the library's version. The layouts that matter come with the crate edgefirst-tflite-sys.
//
// Options (keys and values are strings; an unknown key is refused):
//   ops=FULLY_CONNECTED,ADD   operators to claim, of FULLY_CONNECTED ADD MUL LOGISTIC; `none` claims nothing
//   error=0.25                added to the first value of each row that it computes (a softmax behind it would
//                             cancel an error that all values share)
//   fail=MOMENT               report an error there
//   crash=MOMENT              write through a null pointer there
//   hang=MOMENT               never come back from there
//   slow_ms=N                 each invoke from `from_invoke` on takes that much longer
//   from_invoke=N             the moment `invoke` is the N-th invoke and every later one (counted from 1)
//   cache=PATH                what it compiles is kept in this file: read if it is there, else compiled and written
//   compile_ms=N              compiling takes that long
//   compile_at=MOMENT         when it is compiled or read: create (the usual), prepare or invoke
//   cache_bytes=N             how much it keeps
//   probe=1                   try to open a file, a socket and a program, in `create` and at that invoke,
//                             and say on stderr how each attempt ended
// MOMENT is create, prepare (the graph is partitioned), kernel-prepare (a partition is prepared) or invoke.
// Compiled with -DCRASH_ON_LOAD it crashes while it is being loaded, before it knows any option.

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <map>
#include <string>
#include <vector>

#include "tensorflow/lite/builtin_ops.h"
#include "tensorflow/lite/core/c/common.h"

namespace {

// The parameters of FULLY_CONNECTED, ADD and MUL begin with the fused activation, the only one needed here;
// the header that declares them whole does not come with the crate.
enum Activation { kNone = 0, kRelu = 1, kReluN1To1 = 2, kRelu6 = 3, kTanh = 4, kSigmoid = 6 };
struct Params {
  Activation activation;
};

enum class Moment { kNever, kCreate, kPrepare, kKernelPrepare, kInvoke };

struct TestDelegate {
  TfLiteDelegate base = {};
  std::string ops = "FULLY_CONNECTED";
  float error = 0;
  Moment fail = Moment::kNever;
  Moment crash = Moment::kNever;
  Moment hang = Moment::kNever;
  long from_invoke = 1;
  long slow_ms = 0;
  bool probe = false;
  long invokes = 0;
  std::string cache;
  long compile_ms = 0;
  Moment compile_at = Moment::kCreate;
  long cache_bytes = 1000;
};

// A node that was claimed, as it stood in the graph.
struct Node {
  int op;
  const void* params;
  std::vector<int> inputs;
  std::vector<int> outputs;
};

// One partition: claimed nodes that follow each other. A tensor that only lives inside it gets no memory
// from the interpreter, so the partition keeps that itself.
struct Partition {
  TestDelegate* delegate;
  std::vector<Node> nodes;
  std::map<int, std::vector<float>> inner;
};

void Crash() {
  // The pointer itself is volatile: a compiler that sees the null drops whole functions that lead here.
  volatile int* volatile nowhere = nullptr;
  *nowhere = 1;
}

void Hang() {
  for (;;) pause();
}

// Every line starts alike, so that a test finds it among TFLite's own.
__attribute__((format(printf, 1, 2))) void Say(const char* format, ...) {
  va_list args;
  va_start(args, format);
  fputs("test-delegate: ", stderr);
  vfprintf(stderr, format, args);
  fputc('\n', stderr);
  va_end(args);
}

const char* Outcome(bool done) { return done ? "allowed" : strerror(errno); }

// What a hostile driver would try. A program that does not exist is enough to see whether exec is allowed:
// the kernel then says that there is no such file, and something else if a filter stands before it.
void Probe(const char* moment) {
  int file = open("/etc/passwd", O_RDONLY);
  Say("probe %s open /etc/passwd: %s", moment, Outcome(file >= 0));
  if (file >= 0) close(file);
  int created = socket(AF_INET, SOCK_STREAM, 0);
  Say("probe %s socket: %s", moment, Outcome(created >= 0));
  if (created >= 0) close(created);
  char* const nothing[] = {nullptr};
  execve("/nonexistent/program", nothing, nothing);
  Say("probe %s exec: %s", moment, errno == ENOENT ? "allowed" : strerror(errno));
}

// True when the caller must report an error.
bool Misbehave(const TestDelegate& delegate, Moment now) {
  if (now == Moment::kInvoke && delegate.invokes < delegate.from_invoke) return false;
  if (delegate.crash == now) Crash();
  if (delegate.hang == now) Hang();
  return delegate.fail == now;
}

const char kCompiled[] = "compiled by test-delegate\n";

bool WriteCache(const std::string& path, long bytes) {
  std::string part = path + ".part";
  int file = open(part.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  if (file < 0) return false;
  std::string content = kCompiled + std::string(bytes, 'x');
  size_t written = 0;
  while (written < content.size()) {
    ssize_t more = write(file, content.data() + written, content.size() - written);
    if (more < 0) break;
    written += more;
  }
  int error = errno;
  bool kept = written == content.size() && fsync(file) == 0 && rename(part.c_str(), path.c_str()) == 0;
  if (written < content.size()) errno = error;
  close(file);
  return kept;
}

// What is wrong, if anything; empty when the graph is ready.
std::string Compile(TestDelegate* delegate, Moment now) {
  if (delegate->cache.empty() || delegate->compile_at != now) return "";
  const char* path = delegate->cache.c_str();
  delegate->compile_at = Moment::kNever;
  if (FILE* file = fopen(path, "r")) {
    char begin[sizeof kCompiled] = {};
    size_t length = fread(begin, 1, sizeof kCompiled - 1, file);
    fclose(file);
    if (length != sizeof kCompiled - 1 || strcmp(begin, kCompiled) != 0) return "its cache is damaged";
    Say("the cache was used");
    return "";
  }
  Say("compiling");
  usleep(static_cast<useconds_t>(delegate->compile_ms) * 1000);
  if (!WriteCache(path, delegate->cache_bytes)) return std::string("its cache cannot be written: ") + strerror(errno);
  return "";
}

int64_t Count(const TfLiteTensor& tensor) {
  int64_t count = 1;
  for (int i = 0; i < tensor.dims->size; i++) count *= tensor.dims->data[i];
  return count;
}

Activation FusedActivation(const Node& node) { return static_cast<const Params*>(node.params)->activation; }

float Activate(Activation activation, float value) {
  switch (activation) {
    case kRelu: return fmaxf(value, 0);
    case kRelu6: return fminf(fmaxf(value, 0), 6);
    case kReluN1To1: return fminf(fmaxf(value, -1), 1);
    case kTanh: return tanhf(value);
    case kSigmoid: return 1 / (1 + expf(-value));
    default: return value;
  }
}

const char* OpName(int op) {
  switch (op) {
    case kTfLiteBuiltinFullyConnected: return "FULLY_CONNECTED";
    case kTfLiteBuiltinAdd: return "ADD";
    case kTfLiteBuiltinMul: return "MUL";
    case kTfLiteBuiltinLogistic: return "LOGISTIC";
    default: return nullptr;
  }
}

// Claims float nodes of the wished operators; element-wise ones only where no side is broadcast but a scalar.
bool Claims(const TestDelegate& delegate, TfLiteContext* context, const TfLiteNode& node, int op) {
  const char* name = OpName(op);
  if (!name || delegate.ops.find(name) == std::string::npos) return false;
  int64_t outputs = Count(context->tensors[node.outputs->data[0]]);
  for (int i = 0; i < node.inputs->size; i++) {
    int index = node.inputs->data[i];
    if (index < 0) continue;
    const TfLiteTensor& input = context->tensors[index];
    if (input.type != kTfLiteFloat32) return false;
    if (op != kTfLiteBuiltinFullyConnected && Count(input) != outputs && Count(input) != 1) return false;
  }
  return true;
}

float* Values(TfLiteContext* context, Partition* partition, int index) {
  TfLiteTensor& tensor = context->tensors[index];
  if (tensor.data.f) return tensor.data.f;
  std::vector<float>& own = partition->inner[index];
  own.resize(Count(tensor));
  return own.data();
}

void FullyConnected(TfLiteContext* context, Partition* partition, const Node& node) {
  Activation activation = FusedActivation(node);
  const TfLiteTensor& weights = context->tensors[node.inputs[1]];
  int64_t wide = weights.dims->data[1], units = weights.dims->data[0];
  int64_t rows = Count(context->tensors[node.inputs[0]]) / wide;
  const float* in = Values(context, partition, node.inputs[0]);
  const float* weight = Values(context, partition, node.inputs[1]);
  const float* bias = nullptr;
  if (node.inputs.size() > 2 && node.inputs[2] >= 0) bias = Values(context, partition, node.inputs[2]);
  // A claimed tensor's batch follows the input's: the interpreter did not size what it gave no memory.
  float* out = Values(context, partition, node.outputs[0]);
  for (int64_t row = 0; row < rows; row++) {
    for (int64_t unit = 0; unit < units; unit++) {
      float sum = bias ? bias[unit] : 0;
      for (int64_t i = 0; i < wide; i++) sum += in[row * wide + i] * weight[unit * wide + i];
      out[row * units + unit] = Activate(activation, sum);
    }
    out[row * units] += partition->delegate->error;
  }
}

void ElementWise(TfLiteContext* context, Partition* partition, const Node& node) {
  float* out = Values(context, partition, node.outputs[0]);
  int64_t outputs = Count(context->tensors[node.outputs[0]]);
  auto value = [&](int input, int64_t i) {
    int index = node.inputs[input];
    return Values(context, partition, index)[Count(context->tensors[index]) == 1 ? 0 : i];
  };
  for (int64_t i = 0; i < outputs; i++) {
    float result;
    if (node.op == kTfLiteBuiltinLogistic) {
      result = Activate(kSigmoid, value(0, i));
    } else if (node.op == kTfLiteBuiltinAdd) {
      result = Activate(FusedActivation(node), value(0, i) + value(1, i));
    } else {
      result = Activate(FusedActivation(node), value(0, i) * value(1, i));
    }
    out[i] = result;
  }
  out[0] += partition->delegate->error;
}

std::vector<int> Indices(const TfLiteIntArray* array) {
  return std::vector<int>(array->data, array->data + array->size);
}

void* KernelInit(TfLiteContext* context, const char* buffer, size_t) {
  auto* params = reinterpret_cast<const TfLiteDelegateParams*>(buffer);
  auto* partition = new Partition;
  partition->delegate = static_cast<TestDelegate*>(params->delegate->data_);
  for (int index : Indices(params->nodes_to_replace)) {
    TfLiteNode* node;
    TfLiteRegistration* registration;
    context->GetNodeAndRegistration(context, index, &node, &registration);
    partition->nodes.push_back({registration->builtin_code, node->builtin_data, Indices(node->inputs),
                                Indices(node->outputs)});
  }
  return partition;
}

void KernelFree(TfLiteContext*, void* partition) { delete static_cast<Partition*>(partition); }

// Output shapes follow the inputs' batch, as they would with the built-in kernels.
TfLiteStatus KernelPrepare(TfLiteContext* context, TfLiteNode* self) {
  auto* partition = static_cast<Partition*>(self->user_data);
  if (Misbehave(*partition->delegate, Moment::kKernelPrepare)) {
    context->ReportError(context, "test-delegate: the driver refused a partition, as it was told to");
    return kTfLiteError;
  }
  for (const Node& node : partition->nodes) {
    if (node.op != kTfLiteBuiltinFullyConnected) continue;
    const TfLiteTensor& weights = context->tensors[node.inputs[1]];
    TfLiteTensor* out = &context->tensors[node.outputs[0]];
    int64_t rows = Count(context->tensors[node.inputs[0]]) / weights.dims->data[1];
    if (out->dims->size != 2 || out->dims->data[0] == rows) continue;
    size_t bytes = sizeof(int) * 3;
    auto* dims = static_cast<TfLiteIntArray*>(malloc(bytes));
    dims->size = 2;
    dims->data[0] = static_cast<int>(rows);
    dims->data[1] = weights.dims->data[0];
    if (context->ResizeTensor(context, out, dims) != kTfLiteOk) return kTfLiteError;
  }
  return kTfLiteOk;
}

TfLiteStatus KernelInvoke(TfLiteContext* context, TfLiteNode* self) {
  auto* partition = static_cast<Partition*>(self->user_data);
  TestDelegate* delegate = partition->delegate;
  delegate->invokes++;
  if (delegate->probe && delegate->invokes == delegate->from_invoke) Probe("invoke");
  if (Misbehave(*delegate, Moment::kInvoke)) {
    context->ReportError(context, "test-delegate: the device was lost, as it was told to be");
    return kTfLiteError;
  }
  if (delegate->slow_ms && delegate->invokes >= delegate->from_invoke) usleep(delegate->slow_ms * 1000);
  std::string problem = Compile(delegate, Moment::kInvoke);
  if (!problem.empty()) {
    context->ReportError(context, "test-delegate: %s", problem.c_str());
    return kTfLiteError;
  }
  for (const Node& node : partition->nodes) {
    if (node.op == kTfLiteBuiltinFullyConnected) {
      FullyConnected(context, partition, node);
    } else {
      ElementWise(context, partition, node);
    }
  }
  return kTfLiteOk;
}

TfLiteStatus Prepare(TfLiteContext* context, TfLiteDelegate* base) {
  auto* delegate = static_cast<TestDelegate*>(base->data_);
  if (Misbehave(*delegate, Moment::kPrepare)) {
    context->ReportError(context, "test-delegate: there is no device, as it was told");
    return kTfLiteError;
  }
  std::string problem = Compile(delegate, Moment::kPrepare);
  if (!problem.empty()) {
    context->ReportError(context, "test-delegate: %s", problem.c_str());
    return kTfLiteError;
  }
  TfLiteIntArray* plan;
  if (context->GetExecutionPlan(context, &plan) != kTfLiteOk) return kTfLiteError;
  std::vector<int> claimed = {0};  // laid out as a TfLiteIntArray: the count first
  for (int index : Indices(plan)) {
    TfLiteNode* node;
    TfLiteRegistration* registration;
    if (context->GetNodeAndRegistration(context, index, &node, &registration) != kTfLiteOk) return kTfLiteError;
    if (Claims(*delegate, context, *node, registration->builtin_code)) claimed.push_back(index);
  }
  claimed[0] = static_cast<int>(claimed.size()) - 1;
  if (claimed[0] == 0) return kTfLiteOk;
  TfLiteRegistration kernel = {};
  kernel.init = KernelInit;
  kernel.free = KernelFree;
  kernel.prepare = KernelPrepare;
  kernel.invoke = KernelInvoke;
  kernel.builtin_code = kTfLiteBuiltinDelegate;
  kernel.custom_name = "TestDelegate";
  kernel.version = 1;
  return context->ReplaceNodeSubsetsWithDelegateKernels(
      context, kernel, reinterpret_cast<TfLiteIntArray*>(claimed.data()), base);
}

bool ParseMoment(const std::string& text, Moment* moment) {
  if (text == "create") *moment = Moment::kCreate;
  else if (text == "prepare") *moment = Moment::kPrepare;
  else if (text == "kernel-prepare") *moment = Moment::kKernelPrepare;
  else if (text == "invoke") *moment = Moment::kInvoke;
  else return false;
  return true;
}

bool Configure(TestDelegate* delegate, const std::string& key, const std::string& value) {
  if (key == "ops") delegate->ops = value;
  else if (key == "error") delegate->error = strtof(value.c_str(), nullptr);
  else if (key == "fail") return ParseMoment(value, &delegate->fail);
  else if (key == "crash") return ParseMoment(value, &delegate->crash);
  else if (key == "hang") return ParseMoment(value, &delegate->hang);
  else if (key == "from_invoke") delegate->from_invoke = strtol(value.c_str(), nullptr, 10);
  else if (key == "slow_ms") delegate->slow_ms = strtol(value.c_str(), nullptr, 10);
  else if (key == "probe") delegate->probe = value == "1";
  else if (key == "cache") delegate->cache = value;
  else if (key == "compile_ms") delegate->compile_ms = strtol(value.c_str(), nullptr, 10);
  else if (key == "compile_at") return ParseMoment(value, &delegate->compile_at);
  else if (key == "cache_bytes") delegate->cache_bytes = strtol(value.c_str(), nullptr, 10);
  else return false;
  return true;
}

#ifdef CRASH_ON_LOAD
__attribute__((constructor)) void OnLoad() { Crash(); }
#endif

}  // namespace

#ifdef STABLE
extern "C" __attribute__((visibility("default"))) const int TFL_TheStableDelegate = 1;
#endif

#ifdef GPU_V2
// As in TFLite's lite/delegates/gpu/delegate_options.h: the functions of its GPU delegate in place of a plugin's.
// Starts only with the numbers that its test sets, and with its own default in the rest.
typedef struct {
  int32_t is_precision_loss_allowed, inference_preference;
  int32_t inference_priority1, inference_priority2, inference_priority3;
  int64_t experimental_flags;
  int32_t max_delegated_partitions;
  const char *serialization_dir, *model_token;
} TfLiteGpuDelegateOptionsV2;

extern "C" __attribute__((visibility("default"))) TfLiteGpuDelegateOptionsV2 TfLiteGpuDelegateOptionsV2Default() {
  return {-1, 2, 1, 0, 0, 1, 1, nullptr, nullptr};
}

extern "C" __attribute__((visibility("default"))) TfLiteDelegate* TfLiteGpuDelegateV2Create(
    const TfLiteGpuDelegateOptionsV2* o) {
  bool as_told = o->is_precision_loss_allowed == -1 && o->inference_preference == 2 && o->inference_priority1 == 1 &&
                 o->inference_priority2 == 0 && o->inference_priority3 == 3 &&
                 (o->experimental_flags & ~int64_t{8}) == (int64_t{1} << 40) && o->max_delegated_partitions == 7;
  // The flag, the directory and the token come together or not at all.
  bool caches = o->experimental_flags & 8;
  if (!as_told || caches != !!o->serialization_dir || caches != !!o->model_token) return nullptr;
  auto* delegate = new TestDelegate;
  if (caches) delegate->cache = std::string(o->serialization_dir) + "/" + o->model_token;
  delegate->compile_at = Moment::kPrepare;
  delegate->base.data_ = delegate;
  delegate->base.Prepare = Prepare;
  delegate->base.flags = kTfLiteDelegateFlagsNone;
  return &delegate->base;
}

extern "C" __attribute__((visibility("default"))) void TfLiteGpuDelegateV2Delete(TfLiteDelegate* base) {
  if (base) delete static_cast<TestDelegate*>(base->data_);
}
#else
extern "C" __attribute__((visibility("default"))) TfLiteDelegate* tflite_plugin_create_delegate(
    const char* const* keys, const char* const* values, size_t count, void (*report)(const char*)) {
  auto refuse = [&](const std::string& why) -> TfLiteDelegate* {
    if (report) report(("test-delegate: " + why).c_str());
    return nullptr;
  };
  auto* delegate = new TestDelegate;
  for (size_t i = 0; i < count; i++) {
    if (Configure(delegate, keys[i], values[i])) continue;
    delete delegate;
    return refuse(std::string("it has no option ") + keys[i] + "=" + values[i]);
  }
  if (delegate->probe) Probe("create");
  if (Misbehave(*delegate, Moment::kCreate)) {
    delete delegate;
    return refuse("the driver was not found, as it was told");
  }
  std::string problem = Compile(delegate, Moment::kCreate);
  if (!problem.empty()) {
    delete delegate;
    return refuse(problem);
  }
  delegate->base.data_ = delegate;
  delegate->base.Prepare = Prepare;
  delegate->base.flags = kTfLiteDelegateFlagsNone;
  return &delegate->base;
}

extern "C" __attribute__((visibility("default"))) void tflite_plugin_destroy_delegate(TfLiteDelegate* base) {
  if (base) delete static_cast<TestDelegate*>(base->data_);
}
#endif  // GPU_V2
