// A frami-edge classifier in C++: ONNX Runtime and nothing else. The log-mel front end is inside
// the graph of a `.wave.onnx` file (frami-edge export --with-frontend), so samples go in.
//
//   classify student.wave.onnx clip.wav               a 16-bit mono WAV, as a whole
//   arecord -q -t raw -f S16_LE -c 1 -r 16000 | classify student.wave.onnx -     the last second,
//                                                                                twice a second

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

class Classifier {
 public:
  explicit Classifier(const char* path) : session_(nullptr) {
    Ort::SessionOptions options;
    options.SetIntraOpNumThreads(1);  // a student is too small to gain from a second thread
    session_ = Ort::Session(environment_, path, options);
    Ort::AllocatorWithDefaultOptions allocator;
    const auto text =
        session_.GetModelMetadata().LookupCustomMetadataMapAllocated("frami.waveform", allocator);
    if (!text) throw std::runtime_error("no .wave.onnx file: export with --with-frontend");
    sample_rate_ = number(text.get(), "\"sample_rate\":");
    labels_ = strings(text.get(), "\"labels\":[");
    sigmoid_ = std::strstr(text.get(), "\"output\":\"sigmoid\"") != nullptr;
  }

  int sample_rate() const { return sample_rate_; }
  const std::vector<std::string>& labels() const { return labels_; }

  // Samples, full scale 1, at `sample_rate()`, at least one; the probability of every class, or of
  // every detector.
  std::vector<float> classify(const std::vector<float>& samples) {
    const std::array<std::int64_t, 2> shape{1, static_cast<std::int64_t>(samples.size())};
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    auto input = Ort::Value::CreateTensor<float>(memory, const_cast<float*>(samples.data()),
                                                 samples.size(), shape.data(), shape.size());
    const char* in = "waveform";
    const char* out = "logits";
    const auto answer = session_.Run(Ort::RunOptions{nullptr}, &in, &input, 1, &out, 1);
    const float* logits = answer[0].GetTensorData<float>();
    std::vector<float> scores(logits, logits + labels_.size());
    if (sigmoid_) {  // a detector per class
      for (float& score : scores) score = 1.0F / (1.0F + std::exp(-score));
      return scores;
    }
    const float highest = *std::max_element(scores.begin(), scores.end());
    for (float& score : scores) score = std::exp(score - highest);
    const float sum = std::accumulate(scores.begin(), scores.end(), 0.0F);
    for (float& score : scores) score /= sum;
    return scores;
  }

 private:
  static int number(const std::string& json, const std::string& key) {
    const auto at = json.find(key);
    if (at == std::string::npos) throw std::runtime_error("the model's metadata lack " + key);
    return std::atoi(json.c_str() + at + key.size());
  }

  // The strings of a JSON list. The exporter writes other letters than ASCII as \uXXXX: a program
  // with such labels takes a JSON library here.
  static std::vector<std::string> strings(const std::string& json, const std::string& key) {
    const auto at = json.find(key);
    if (at == std::string::npos) throw std::runtime_error("the model's metadata lack " + key);
    std::vector<std::string> found;
    bool inside = false;
    for (auto i = at + key.size(); i < json.size() && (inside || json[i] != ']'); ++i) {
      if (json[i] == '"') {
        inside = !inside;
        if (inside) found.emplace_back();
      } else if (inside) {
        if (json[i] == '\\' && (json[i + 1] == '"' || json[i + 1] == '\\')) ++i;
        found.back() += json[i];
      }
    }
    return found;
  }

  Ort::Env environment_{ORT_LOGGING_LEVEL_WARNING, "frami-edge"};
  Ort::Session session_;
  int sample_rate_ = 0;
  std::vector<std::string> labels_;
  bool sigmoid_ = false;
};

float from_int16(const unsigned char* bytes) {  // little-endian on every machine
  const auto value = static_cast<std::int16_t>(bytes[0] | (bytes[1] << 8));
  return static_cast<float>(value) / 32768.0F;
}

std::uint32_t little_endian(const unsigned char* bytes, int n) {
  std::uint32_t value = 0;
  for (int i = n - 1; i >= 0; --i) value = (value << 8) | bytes[i];
  return value;
}

std::vector<float> read_wav(const char* path, int sample_rate) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<unsigned char> bytes{std::istreambuf_iterator<char>(file), {}};
  if (bytes.size() < 12 || std::memcmp(&bytes[0], "RIFF", 4) || std::memcmp(&bytes[8], "WAVE", 4))
    throw std::runtime_error(std::string(path) + " is no WAV file");
  bool known = false;
  for (std::size_t at = 12; at + 8 <= bytes.size();) {
    const std::size_t room = bytes.size() - at - 8;
    const std::size_t size = std::min<std::size_t>(little_endian(&bytes[at + 4], 4), room);
    const unsigned char* body = bytes.data() + at + 8;
    if (!std::memcmp(&bytes[at], "fmt ", 4) && size >= 16) {
      known = little_endian(body, 2) == 1 && little_endian(body + 2, 2) == 1 &&
              little_endian(body + 14, 2) == 16 &&
              little_endian(body + 4, 4) == static_cast<std::uint32_t>(sample_rate);
    } else if (!std::memcmp(&bytes[at], "data", 4)) {
      if (!known || size < 2)
        throw std::runtime_error(std::string(path) + " must be 16-bit PCM, mono, " +
                                 std::to_string(sample_rate) + " Hz, and not empty");
      std::vector<float> samples(size / 2);
      for (std::size_t i = 0; i < samples.size(); ++i) samples[i] = from_int16(body + 2 * i);
      return samples;
    }
    at += 8 + size + (size & 1);
  }
  throw std::runtime_error(std::string(path) + " has no samples");
}

void show(const Classifier& model, const std::vector<float>& scores, double seconds) {
  const auto best = std::max_element(scores.begin(), scores.end()) - scores.begin();
  std::printf("%.2f s  %s  %.4f\n", seconds, model.labels()[best].c_str(), scores[best]);
  std::fflush(stdout);
}

// Raw 16-bit samples on stdin. Each answer is about the window alone, as if it were a clip; the
// Python runtime's streams carry state instead, cost less, and know lost audio and events.
void listen(Classifier& model) {
  const std::size_t window = model.sample_rate(), hop = window / 2;
  std::vector<float> samples;
  std::vector<unsigned char> bytes(2 * hop);
  std::size_t heard = 0;
  while (std::fread(bytes.data(), 2, hop, stdin) == hop) {
    for (std::size_t i = 0; i < hop; ++i) samples.push_back(from_int16(&bytes[2 * i]));
    if (samples.size() > window) samples.erase(samples.begin(), samples.end() - window);
    heard += hop;
    show(model, model.classify(samples), static_cast<double>(heard) / model.sample_rate());
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: classify MODEL.wave.onnx CLIP.wav|-\n";
    return 2;
  }
  try {
    Classifier model(argv[1]);
    if (std::strcmp(argv[2], "-") == 0) {
      listen(model);
    } else {
      const auto samples = read_wav(argv[2], model.sample_rate());
      show(model, model.classify(samples),
           static_cast<double>(samples.size()) / model.sample_rate());
    }
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
  return 0;
}
