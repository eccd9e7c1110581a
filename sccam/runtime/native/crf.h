// The dense CRF of sccam/stages/crf.py:  Q = softmax(log p + w1 K1 Q + w2 K2 Q),  several unaries of one image at once.
//
// Source: Krähenbühl & Koltun, NeurIPS 2011. Here one pass over the pixels does slice, sum, softmax and splat, so that
// no message is ever stored. Values of a vertex or a pixel are a row of lanes: the labels of all unaries side by side,
// each unary a group of lanes filled up to a power of two or to whole vectors. Each part of an image splats into values
// of its own, which are added up in one order: the result depends on the number of parts, never on that of threads.
#pragma once

#include <list>
#include <memory>
#include <mutex>
#include <tuple>
#include <vector>

#include "common.h"
#include "crf_rows.h"
#include "lattice.h"
#include "simd.h"

namespace sccam {
namespace crf {

// The values at the vertices of one lattice, in two buffers: a blur along an axis reads one and writes the other.
// The buffer that does not hold the last result is set to zero and takes the next splat.
struct Values {
    const Lattice* lattice;
    float weight;                       // of the kernel, with the lattice's alpha
    Aligned<float> buffers[2];          // [M + 1 lanes]; row M is zero
    std::vector<Aligned<float>> others; // [M lanes], what parts after the first splat

    Values(const Lattice& lattice, double compat, int parts, int lanes)
        : lattice(&lattice), weight(compat / (1 + std::ldexp(1.0, 1 - lattice.sides))) {
        for (Aligned<float>& buffer : buffers) {
            buffer = Aligned<float>((lattice.vertices + 1) * lanes);
            std::fill_n(buffer.data() + lattice.vertices * lanes, lanes, 0.0f);
        }
        for (int part = 1; part < parts; ++part) others.emplace_back(lattice.vertices * lanes);
    }

    // Before the blur along an axis of an iteration; axis `sides`: after all.
    float* values(int iteration, int axis) {
        const int first = lattice->sides % 2 ? 0 : iteration % 2;
        return buffers[(first + axis) % 2].data();
    }
    float* blurred(int iteration) { return values(iteration, lattice->sides); }
    float* splatted(int iteration, int part) { return part ? others[part - 1].data() : values(iteration, 0); }
};

constexpr int MOST_SIDES = 6;  // of the lattice of positions and colours

struct Task {
    Tiles tiles;
    Planes planes;
    Rows rows;              // of the planes
    int parts, iterations;
    Aligned<float> logits;  // [N used lanes], log scores; a whole vector may be read at the last
    Aligned<float> padding; // [lanes], NO_LABEL after the used ones, before them 0
    std::vector<Values> kernels;

    Task(const Tiles& tiles, const Planes& planes, int parts, int iterations)
        : tiles(tiles),
          planes(planes),
          rows(planes.rows),
          parts(parts),
          iterations(iterations),
          logits(tiles.pixels() * rows.used + rows.lanes),
          padding(rows.lanes, NO_LABEL) {
        std::fill_n(logits.data() + tiles.pixels() * rows.used, rows.lanes, 0.0f);
        std::fill_n(padding.data(), rows.used, 0.0f);
    }

    void add_kernel(const Lattice& lattice, double compat) { kernels.emplace_back(lattice, compat, parts, rows.lanes); }
};

// The arithmetic on rows of COUNT vectors of WIDTH lanes; COUNT 0: as many as the task has.
template <int WIDTH, int COUNT>
struct RowWork {
    using Row = typename VectorOf<WIDTH>::type;
    static constexpr int CHUNK = COUNT ? COUNT : 1;  // vectors of a row in registers at a time

    static const Row& at(const float* from, int n) { return reinterpret_cast<const Row*>(from)[n]; }
    static Row& at(float* to, int n) { return reinterpret_cast<Row*>(to)[n]; }
    static int64_t lanes(const Task& task) { return COUNT ? WIDTH * COUNT : task.rows.lanes; }

    // The corners of one pixel after the other, and the values there; a local copy, which no store can change.
    template <int SIDES, class Float>
    struct Corners {
        const uint32_t* corner;
        const float* weight;
        Float* values;

        Corners(const Lattice& lattice, int64_t pixel, Float* values)
            : corner(lattice.corner.data() + pixel * SIDES),
              weight(lattice.weight.data() + pixel * SIDES),
              values(values) {}
        void next() { corner += SIDES, weight += SIDES; }

        // sum[n] += weight * value, over the corners
        void gather(int64_t lanes, int64_t lane, Row (&sum)[CHUNK]) const {
            for (int side = 0; side < SIDES; ++side) {
                const float* from = values + corner[side] * lanes + lane;
                for (int n = 0; n < CHUNK; ++n) sum[n] += weight[side] * at(from, n);
            }
        }

        // value of each corner += weight * row[n]
        void scatter(int64_t lanes, int64_t lane, const Row (&row)[CHUNK]) const {
            for (int side = 0; side < SIDES; ++side) {
                float* to = values + corner[side] * lanes + lane;
                const float factor = weight[side];
                for (int n = 0; n < CHUNK; ++n) at(to, n) += factor * row[n];
            }
        }
    };

    // rows = log scores + messages of both kernels
    static void slice(Task& task, int iteration, int64_t pixel, int length, float* rows) {
        const int64_t lanes = RowWork::lanes(task), stride = task.rows.stride, used = task.rows.used;
        Values &spatial = task.kernels[0], &bilateral = task.kernels[1];
        Corners<3, const float> near(*spatial.lattice, pixel, spatial.blurred(iteration - 1));
        Corners<6, const float> alike(*bilateral.lattice, pixel, bilateral.blurred(iteration - 1));
        const float* logit = task.logits.data() + pixel * used;
        const float* const padding = task.padding.data();
        for (float* const end = rows + length * stride; rows < end; rows += stride) {
            for (int64_t lane = 0; lane < lanes; lane += WIDTH * CHUNK) {
                Row sum[CHUNK], other[CHUNK] = {};
                for (int n = 0; n < CHUNK; ++n) sum[n] = at(logit + lane, n);
                sum[CHUNK - 1] += at(padding + lane, CHUNK - 1);  // over what is the next pixel's
                near.gather(lanes, lane, sum);
                alike.gather(lanes, lane, other);
                for (int n = 0; n < CHUNK; ++n) at(rows + lane, n) = sum[n] + other[n];
            }
            for (int64_t lane = lanes; lane < stride; lane += WIDTH) at(rows + lane, 0) = Row{} + NO_LABEL;
            logit += used, near.next(), alike.next();
        }
    }

    static void splat(Task& task, int iteration, int part, int64_t pixel, int length, const float* rows) {
        const int64_t lanes = RowWork::lanes(task), stride = task.rows.stride;
        Values &spatial = task.kernels[0], &bilateral = task.kernels[1];
        Corners<3, float> near(*spatial.lattice, pixel, spatial.splatted(iteration, part));
        Corners<6, float> alike(*bilateral.lattice, pixel, bilateral.splatted(iteration, part));
        for (const float* const end = rows + length * stride; rows < end; rows += stride) {
            for (int64_t lane = 0; lane < lanes; lane += WIDTH * CHUNK) {
                Row q[CHUNK];
                for (int n = 0; n < CHUNK; ++n) q[n] = at(rows + lane, n);
                near.scatter(lanes, lane, q);
                alike.scatter(lanes, lane, q);
            }
            near.next(), alike.next();
        }
    }

    // Whole vectors, of which the next pixels overwrite the padding; not at the end, where another part may follow.
    static void keep_logits(Task& task, int64_t pixel, int length, const float* rows) {
        const int64_t lanes = RowWork::lanes(task), used = task.rows.used, stride = task.rows.stride;
        float* to = task.logits.data() + pixel * used;
        for (const float* const end = to + length * used; to < end; to += used, rows += stride) {
            if (to + lanes <= end)
                for (int n = 0; n < (COUNT ? COUNT : lanes / WIDTH); ++n) at(to, n) = at(rows, n);
            else
                std::copy_n(rows, used, to);
        }
    }

    // One update of the pixels of a part.
    static void update(Task& task, int iteration, int part, float* rows) {
        task.tiles.runs(part, task.parts, [&](int64_t pixel, int64_t y, int64_t x, int length) {
            const int64_t place = y * task.tiles.width + x;
            if (iteration == 0) {
                read_logits(task.planes, place, length, rows);
                keep_logits(task, pixel, length, rows);
            } else {
                slice(task, iteration, pixel, length, rows);
            }
            softmax(task.rows, rows);
            if (iteration == task.iterations) {
                write_posteriors(task.planes, place, length, rows);
            } else {
                splat(task, iteration, part, pixel, length, rows);
            }
        });
    }

    // The first part's values become the sum of all parts'; the others' become zero.
    static void add_up(Task& task, Values& values, int iteration, Share share) {
        const int64_t lanes = RowWork::lanes(task);
        for (int part = 1; part < task.parts; ++part) {
            const int64_t first = std::max(share.first, values.lattice->first[part]) * lanes;
            const int64_t last = std::min(share.last, values.lattice->last[part]) * lanes;
            float* const sum = values.splatted(iteration, 0);
            float* const other = values.splatted(iteration, part);
            for (int64_t n = first; n < last; n += WIDTH) {
                at(sum + n, 0) += at(other + n, 0);
                at(other + n, 0) = Row{};
            }
        }
    }

    static void blur(Task& task, Values& values, int iteration, int axis, Share share) {
        const int64_t lanes = RowWork::lanes(task), M = values.lattice->vertices;
        const uint32_t* const pairs = values.lattice->neighbour.data() + axis * M * 2;
        const float* const from = values.values(iteration, axis);
        float* const to = values.values(iteration, axis + 1);
        const float weight = axis + 1 == values.lattice->sides ? values.weight : 1;
        for (int64_t v = share.first; v < share.last; ++v) {
            const float* one = from + pairs[2 * v] * lanes;
            const float* other = from + pairs[2 * v + 1] * lanes;
            for (int n = 0; n < (COUNT ? COUNT : lanes / WIDTH); ++n)
                at(to + v * lanes, n) = weight * (at(from + v * lanes, n) + 0.5f * (at(one, n) + at(other, n)));
        }
    }

    // Zeros for what a part will splat, in a share of the rows.
    static void clear(Task& task, Values& values, int iteration, int part, Share share) {
        const int64_t lanes = RowWork::lanes(task);
        float* const splatted = values.splatted(iteration, part);
        std::fill(splatted + share.first * lanes, splatted + share.last * lanes, 0.0f);
    }

    static void mean_field(Task& task, int threads) {
        Barrier barrier(threads);
        std::vector<Aligned<float>> rows;  // of a run, for each thread; from here on nothing can fail
        for (int thread = 0; thread < threads; ++thread) rows.emplace_back(TILE * task.rows.stride, 0.0f);
        on_threads(threads, [&](int thread) {
            const Share parts(task.parts, thread, threads);
            const auto vertices = [&](const Values& values) {
                return Share(values.lattice->vertices, thread, threads);
            };
            for (int64_t part = parts.first; part < parts.last; ++part)
                for (Values& values : task.kernels) clear(task, values, 0, part, Share(values.lattice->vertices, 0, 1));
            for (int iteration = 0; iteration <= task.iterations; ++iteration) {
                for (int64_t part = parts.first; part < parts.last; ++part)
                    update(task, iteration, part, rows[thread].data());
                if (iteration == task.iterations) return;
                barrier.wait();
                for (Values& values : task.kernels) add_up(task, values, iteration, vertices(values));
                barrier.wait();
                for (int axis = 0; axis <= MOST_SIDES; ++axis) {
                    for (Values& values : task.kernels) {
                        if (axis < values.lattice->sides) blur(task, values, iteration, axis, vertices(values));
                        if (axis == values.lattice->sides) clear(task, values, iteration + 1, 0, vertices(values));
                    }
                    barrier.wait();
                }
            }
        });
    }
};

// The lattice of positions depends on nothing but sizes, so the last ones are kept; see CACHED_PIXELS.
class SpatialLattices {
public:
    std::shared_ptr<const Lattice> get(const Tiles& tiles, double sxy, int parts, int threads) {
        const Key key{tiles.height, tiles.width, sxy, parts};
        if (auto kept = find(key)) return kept;
        auto lattice = std::make_shared<const Lattice>(build(tiles, sxy, parts, threads));
        if (auto kept = find(key)) return kept;  // another thread was faster
        const std::lock_guard<std::mutex> lock(mutex_);
        kept_.emplace_front(key, lattice);
        int64_t pixels = 0;
        for (auto at = kept_.begin(); at != kept_.end();) {
            pixels += std::get<0>(at->first) * std::get<1>(at->first);
            at = pixels > CACHED_PIXELS ? kept_.erase(at) : std::next(at);
        }
        return lattice;
    }

private:
    using Key = std::tuple<int64_t, int64_t, double, int>;
    static constexpr int64_t CACHED_PIXELS = 1 << 22;  // 24 bytes each: 100 MB at most

    // Null if it is not there.
    std::shared_ptr<const Lattice> find(const Key& key) {
        const std::lock_guard<std::mutex> lock(mutex_);
        for (auto at = kept_.begin(); at != kept_.end(); ++at)
            if (at->first == key) {
                kept_.splice(kept_.begin(), kept_, at);
                return at->second;
            }
        return nullptr;
    }

    static Lattice build(const Tiles& tiles, double sxy, int parts, int threads) {
        const float range = sxy;
        return build_lattice<2>(tiles, parts, threads, [&](int64_t y, int64_t x, int count, float (&out)[2][LANES]) {
            for (int n = 0; n < count; ++n) out[0][n] = (x + n) / range, out[1][n] = y / range;
        });
    }

    std::mutex mutex_;
    std::list<std::pair<Key, std::shared_ptr<const Lattice>>> kept_;  // the latest first
};

inline Lattice bilateral_lattice(const Tiles& tiles, const uint8_t* image, double sxy, double srgb,
                                 int parts, int threads) {
    const float range = sxy, colour_range = srgb;
    float level[256];
    for (int n = 0; n < 256; ++n) level[n] = n / colour_range;
    return build_lattice<5>(tiles, parts, threads, [&](int64_t y, int64_t x, int count, float (&out)[5][LANES]) {
        const uint8_t* from = image + (y * tiles.width + x) * 3;
        for (int n = 0; n < count; ++n, from += 3) {
            out[0][n] = (x + n) / range, out[1][n] = y / range;
            out[2][n] = level[from[0]], out[3][n] = level[from[1]], out[4][n] = level[from[2]];
        }
    });
}

inline void mean_field(Task& task, int threads) {
    const int lanes = task.rows.lanes;
    if constexpr (LANES > 4) if (lanes == 4) return RowWork<4, 1>::mean_field(task, threads);
    if constexpr (LANES > 8) if (lanes == 8) return RowWork<8, 1>::mean_field(task, threads);
    if constexpr (LANES > 8) if (lanes == 24) return RowWork<8, 3>::mean_field(task, threads);
    if (lanes == LANES) return RowWork<LANES, 1>::mean_field(task, threads);
    if (lanes == 2 * LANES) return RowWork<LANES, 2>::mean_field(task, threads);
    if (lanes == 3 * LANES) return RowWork<LANES, 3>::mean_field(task, threads);
    RowWork<LANES, 0>::mean_field(task, threads);
}

}  // namespace crf
}  // namespace sccam

// Posteriors of the unaries of one image; the arguments are those of sccam/runtime/crf_native.py.
SCCAM_EXPORT int sccam_dense_crf(const uint8_t* image, int64_t height, int64_t width,
                                 int64_t unaries, const int64_t* labels, const float* const* scores,
                                 float* const* posteriors, double score_floor, int64_t iterations,
                                 double gaussian_sxy, double gaussian_compat,
                                 double bilateral_sxy, double bilateral_srgb, double bilateral_compat,
                                 int64_t parts, int64_t threads) {
    using namespace sccam;
    using namespace sccam::crf;
    return guarded([&]() -> int {
        static SpatialLattices spatial_lattices;
        try {
            const Tiles tiles{height, width};
            const auto spatial = spatial_lattices.get(tiles, gaussian_sxy, parts, threads);
            const Lattice bilateral = bilateral_lattice(tiles, image, bilateral_sxy, bilateral_srgb, parts, threads);
            const Rows rows(std::vector<int>(labels, labels + unaries));
            const Planes planes{rows, tiles.pixels(), scores, posteriors, static_cast<float>(score_floor)};
            Task task(tiles, planes, parts, std::max<int64_t>(iterations, 0));
            task.add_kernel(*spatial, gaussian_compat);
            task.add_kernel(bilateral, bilateral_compat);
            mean_field(task, threads);
        } catch (const KeyOverflow&) {
            return KEY_OVERFLOW;
        }
        return OK;
    });
}
