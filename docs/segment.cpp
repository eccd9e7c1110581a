// Labels of one image by an exported segmenter, in C++ with ONNX Runtime and nothing else.
//
//     sccam export runs/photos --network segmenter --labels
//     g++ -std=c++17 -O2 segment.cpp -I ORT/include -L ORT/lib -lonnxruntime -o segment
//     ./segment runs/photos/export/segmenter.onnx image.ppm labels.pgm
//
// The image is a binary PPM (P6), the labels a binary PGM: 0 background, 1.. the classes of segmenter.onnx.json in order.

#include <onnxruntime_cxx_api.h>

#include <array>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

// From segmenter.onnx.json: made_from.pad_multiple, and 255 * mean, rounded. Any padding does at the right and below,
// but the network was trained to see the mean colour there.
constexpr int64_t kMultiple = 32;
constexpr std::array<uint8_t, 3> kMeanColour = {128, 128, 128};

struct Image {
    int64_t height = 0, width = 0;
    std::vector<uint8_t> pixels;  // [height, width, 3], RGB
};

Image read_ppm(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::string kind;
    int64_t width = 0, height = 0, most = 0;
    if (!(file >> kind >> width >> height >> most) || kind != "P6" || most != 255 || width < 1 || height < 1)
        throw std::runtime_error(path + " is no binary PPM of 8 bits");
    file.get();  // one blank ends the header
    Image image{height, width, std::vector<uint8_t>(height * width * 3)};
    if (!file.read(reinterpret_cast<char*>(image.pixels.data()), image.pixels.size()))
        throw std::runtime_error(path + " is cut off");
    return image;
}

// The image at the top left of a larger one whose sides are multiples of `multiple`.
Image padded(const Image& image, int64_t multiple) {
    const auto up = [multiple](int64_t side) { return (side + multiple - 1) / multiple * multiple; };
    Image larger{up(image.height), up(image.width), {}};
    larger.pixels.reserve(larger.height * larger.width * 3);
    for (int64_t y = 0; y < larger.height; ++y)
        for (int64_t x = 0; x < larger.width; ++x)
            for (int64_t c = 0; c < 3; ++c) {
                const bool inside = y < image.height && x < image.width;
                larger.pixels.push_back(inside ? image.pixels[(y * image.width + x) * 3 + c] : kMeanColour[c]);
            }
    return larger;
}

int main(int count, char** arguments) try {
    if (count != 4) throw std::runtime_error("usage: segment segmenter.onnx image.ppm labels.pgm");
    Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "segment");
    Ort::SessionOptions options;  // for a GPU: options.AppendExecutionProvider_CUDA(...)
    Ort::Session session(env, arguments[1], options);  // once a program, not once an image

    const Image image = read_ppm(arguments[2]);
    Image seen = padded(image, kMultiple);
    const std::array<int64_t, 4> shape = {1, seen.height, seen.width, 3};
    const Ort::MemoryInfo memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    Ort::Value input =
        Ort::Value::CreateTensor<uint8_t>(memory, seen.pixels.data(), seen.pixels.size(), shape.data(), shape.size());
    const char* input_name = "image";
    const char* output_name = "labels";
    const std::vector<Ort::Value> outputs =
        session.Run(Ort::RunOptions{nullptr}, &input_name, &input, 1, &output_name, 1);

    const uint8_t* labels = outputs[0].GetTensorData<uint8_t>();  // [1, seen.height, seen.width]
    std::ofstream file(arguments[3], std::ios::binary);
    file << "P5\n" << image.width << ' ' << image.height << "\n255\n";
    for (int64_t y = 0; y < image.height; ++y)
        file.write(reinterpret_cast<const char*>(labels + y * seen.width), image.width);
    if (!file.flush()) throw std::runtime_error(std::string("cannot write ") + arguments[3]);
    return 0;
} catch (const std::exception& error) {
    std::cerr << "segment: " << error.what() << '\n';
    return 1;
}
