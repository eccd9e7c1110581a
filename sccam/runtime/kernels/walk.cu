// Random walk, one step for a batch of images:   y_j = (x_j + sum over taps t of A_t,j x_(j+t)) / D_j
//
// A are the affinities to the power beta, rounded to half precision; D_j = 1 + sum of A_t,j in single precision, added
// up in the order in which the step adds, so that a constant stays what it is. The step also does the three-term
// recurrence of a Chebyshev expansion:   next = scale * y - back * previous,   total += weight * next.
//
// A tap is one neighbour in the window of rows -REACH .. REACH; row dy has columns -half_width(dy) .. half_width(dy).
// Both directions of a pair are stored at the cell that gathers, so that every load is aligned and no cell is written
// twice.
//
// Layout. States: planes of (h + 2 REACH) rows of `pitch` floats, zero around the grid, so that no step looks at a
// border. Weights: [tap][h][quads] of four halves. Outside the grid weights are 0 and D is 1, so padding stays 0.
//
// Launch of the step: one thread for four cells along x and CHANNELS channels, neighbours in x in neighbouring threads.
// A tap's four weights serve CHANNELS x 4 multiply-adds, and a row's window of 4 + 2 half_width values serves all its
// taps: about one load for six multiply-adds instead of two for one. Small batches take one channel a thread, to fill
// the GPU.

#ifndef REACH
#define REACH 4  // rows of the window above and below
#endif
#ifndef HALF
#define HALF 0x23444ull  // columns to either side, four bits for each |dy|, 0 lowest: the disc of radius 5
#endif

struct alignas(16) Image {  // 16 integers; walk_cupy.py, IMAGE
    int height, width, channels;
    int quads;  // ceil(width / 4)
    int pitch, plane;  // of a state [floats]
    int state;  // first float of its planes
    int weight, cells;  // first quad of its weights; first float of its D, [h][4 quads]
    int values, plain;  // first float of its affinities [R h w]; of its channels [c h w]
    int bottom, left, right;  // first cells of pairs: rows [0, bottom), columns [left, right)
    int unused[2];
};

__device__ constexpr int half_width(int dy) { return (HALF >> 4 * (dy < 0 ? -dy : dy)) & 15; }

constexpr int PADDING = (REACH + 3) / 4 * 4;  // columns around a state; a multiple of four keeps quads aligned

__device__ inline float from_half(unsigned short bits) {
#ifdef __CUDA_ARCH__
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
#else
    return half_to_float(bits);
#endif
}

__device__ inline unsigned short to_half(float value) {
#ifdef __CUDA_ARCH__
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
#else
    return float_to_half(value);
#endif
}

// Weights and D from affinities. One thread a cell, padding columns included, loops over taps: 256 threads, coalesced
// along x. taps: {dy, dx, row of the affinities or -1, 1 where this cell is the first of the pair}.
extern "C" __global__ void walk_weights(const int2* blocks, const Image* images, const int4* taps, int tap_count,
                                        const float* affinities, float beta, unsigned short* weights, float* sums) {
    const int2 block = blocks[blockIdx.x];
    const Image image = images[block.x];
    const int columns = 4 * image.quads;
    const int cell = block.y + threadIdx.x;
    const int y = cell / columns, x = cell % columns;
    if (y >= image.height) return;
    float sum = 1.0f;
    for (int t = 0; t < tap_count; ++t) {
        const int4 tap = taps[t];
        const int first_y = tap.w ? y : y + tap.x, first_x = tap.w ? x : x + tap.y;
        const int other_y = y + tap.x, other_x = x + tap.y;
        float weight = 0.0f;
        if (tap.z >= 0 && x < image.width && other_y >= 0 && other_y < image.height && other_x >= 0 &&
            other_x < image.width && first_y < image.bottom && first_x >= image.left && first_x < image.right) {
            const size_t place = (static_cast<size_t>(tap.z) * image.height + first_y) * image.width + first_x;
            weight = powf(affinities[image.values + place], beta);
        }
        const unsigned short rounded = to_half(weight);
        weights[4 * (image.weight + static_cast<size_t>(t) * image.height * image.quads) + cell] = rounded;
        sum += from_half(rounded);
    }
    sums[image.cells + cell] = sum;
}

// Channels [c h w] into padded planes, and total = weight * channels. One thread a value or a cell of padding in the
// last quad of a row, which is cleared: a NaN of an earlier batch may have come there, for 0 * NaN is NaN.
extern "C" __global__ void walk_pack(const int2* blocks, const Image* images, const unsigned long long* channels,
                                     float weight, float* state, float* total) {
    const int2 block = blocks[blockIdx.x];
    const Image image = images[block.x];
    const int item = block.y + threadIdx.x, columns = 4 * image.quads;
    const int x = item % columns, y = item / columns % image.height, c = item / columns / image.height;
    if (c >= image.channels) return;
    const float* row = reinterpret_cast<const float*>(channels[block.x]) +
                       (static_cast<size_t>(c) * image.height + y) * image.width;
    const float value = x < image.width ? row[x] : 0.0f;
    const size_t place = image.state + static_cast<size_t>(c) * image.plane + (y + REACH) * image.pitch + PADDING + x;
    state[place] = value;
    total[place] = weight * value;
}

// Padded planes into channels [c h w]. One thread a value; bad becomes 1 where one is not finite.
extern "C" __global__ void walk_unpack(const int2* blocks, const Image* images, const float* state, float* channels,
                                       int* bad) {
    const int2 block = blocks[blockIdx.x];
    const Image image = images[block.x];
    const int item = block.y + threadIdx.x;
    const int x = item % image.width, y = item / image.width % image.height, c = item / image.width / image.height;
    if (c >= image.channels) return;
    const float value =
        state[image.state + static_cast<size_t>(c) * image.plane + (y + REACH) * image.pitch + PADDING + x];
    channels[image.plain + static_cast<size_t>(item)] = value;
    if (!(fabsf(value) <= 3.402823466e38f)) atomicOr(bad, 1);
}

// Sums are written as fmaf, so that both kernels below round alike and a result does not depend on its batch.
template <int CHANNELS>
__device__ inline void step(const int2* __restrict__ blocks, const Image* __restrict__ images,
                            const ushort4* __restrict__ weights, const float* __restrict__ sums,
                            const float* __restrict__ state, float* __restrict__ other, float* __restrict__ total,
                            float scale, float back, float weight) {
    const int2 block = blocks[blockIdx.x];
    const Image image = images[block.x];
    const int item = block.y + threadIdx.x;
    const int quad = item % image.quads, y = item / image.quads % image.height;
    const int channel = item / image.quads / image.height * CHANNELS;
    if (channel >= image.channels) return;

    const size_t here = image.state + (y + REACH) * image.pitch + PADDING + 4 * quad;
    size_t planes[CHANNELS];  // the last group may have fewer channels: it computes its last one again, stores nothing
    float sum[CHANNELS][4];
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) {
        planes[c] = here + static_cast<size_t>(min(channel + c, image.channels - 1)) * image.plane;
        const float4 own = *reinterpret_cast<const float4*>(state + planes[c]);
        sum[c][0] = own.x, sum[c][1] = own.y, sum[c][2] = own.z, sum[c][3] = own.w;
    }
    const ushort4* tap = weights + image.weight + static_cast<size_t>(y) * image.quads + quad;
    const int next_tap = image.height * image.quads;
#pragma unroll
    for (int dy = -REACH; dy <= REACH; ++dy) {
        constexpr int WINDOW = 4 + 2 * PADDING;
        float window[CHANNELS][WINDOW];
#pragma unroll
        for (int c = 0; c < CHANNELS; ++c)
#pragma unroll
            for (int n = 0; n < WINDOW; n += 4)
                if (n + 3 >= PADDING - half_width(dy) && n < PADDING + 4 + half_width(dy)) {
                    const float* from = state + planes[c] + dy * image.pitch + n - PADDING;
                    const float4 part = *reinterpret_cast<const float4*>(from);
                    window[c][n] = part.x, window[c][n + 1] = part.y;
                    window[c][n + 2] = part.z, window[c][n + 3] = part.w;
                }
#pragma unroll
        for (int dx = -PADDING; dx <= PADDING; ++dx) {
            if (dx < -half_width(dy) || dx > half_width(dy)) continue;
            if (dy == 0 && dx == 0) continue;  // the cell itself, weight 1
            const ushort4 bits = *tap;
            tap += next_tap;
            const float taken[4] = {from_half(bits.x), from_half(bits.y), from_half(bits.z), from_half(bits.w)};
#pragma unroll
            for (int c = 0; c < CHANNELS; ++c)
#pragma unroll
                for (int n = 0; n < 4; ++n) sum[c][n] = fmaf(taken[n], window[c][PADDING + dx + n], sum[c][n]);
        }
    }

    const float4 D = *reinterpret_cast<const float4*>(sums + image.cells + 4 * (y * image.quads + quad));
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) {
        if (channel + c >= image.channels) continue;
        float4 next = make_float4(scale * (sum[c][0] / D.x), scale * (sum[c][1] / D.y), scale * (sum[c][2] / D.z),
                                  scale * (sum[c][3] / D.w));
        float4* there = reinterpret_cast<float4*>(other + planes[c]);
        if (back != 0.0f) {
            const float4 previous = *there;
            next.x = fmaf(-back, previous.x, next.x), next.y = fmaf(-back, previous.y, next.y);
            next.z = fmaf(-back, previous.z, next.z), next.w = fmaf(-back, previous.w, next.w);
        }
        *there = next;
        if (weight != 0.0f) {
            float4* kept = reinterpret_cast<float4*>(total + planes[c]);
            float4 added = *kept;
            added.x = fmaf(weight, next.x, added.x), added.y = fmaf(weight, next.y, added.y);
            added.z = fmaf(weight, next.z, added.z), added.w = fmaf(weight, next.w, added.w);
            *kept = added;
        }
    }
}

extern "C" __global__ void __launch_bounds__(128)
    walk_step_one(const int2* blocks, const Image* images, const ushort4* weights, const float* sums,
                  const float* state, float* other, float* total, float scale, float back, float weight) {
    step<1>(blocks, images, weights, sums, state, other, total, scale, back, weight);
}

// Four windows of a wider reach do not fit in registers; walk_cupy.py, MANY.
extern "C" __global__ void __launch_bounds__(128)
    walk_step_many(const int2* blocks, const Image* images, const ushort4* weights, const float* sums,
                  const float* state, float* other, float* total, float scale, float back, float weight) {
    step<REACH <= 8 ? 4 : 1>(blocks, images, weights, sums, state, other, total, scale, back, weight);
}
