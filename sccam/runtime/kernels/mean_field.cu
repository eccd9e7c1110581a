// Mean field of the dense CRF for a batch of images, both lattices and all labels at once:
//
//     Q <- softmax(log score + sum over lattices of factor * W blur(W^T Q)),    W = pixels x vertices, norm folded in
//
// One iteration is: splat, W^T Q, as a gather over sorted contributions; splat_longs, which completes rows with many of
// them; blur, once an axis; update, which slices W, adds, and takes the softmax. Nothing is added atomically, and the
// order of every sum is fixed by the image alone, so results repeat to the bit in any batch.
//
// Layout. Labels go in quads of four floats; an image's row has `quads` of them, those of its first unary, then those
// of its second, each padded to a multiple of four. Rows of a span (the vertices of one image in one lattice, spans of
// the Gaussian lattice first) lie together: the quad (row, q) is values[span.values + (row - first_row) * quads + q].

struct alignas(16) Span {  // 16 integers; crf_layout.py, SPAN
    int first_row, rows;
    int first_segment, segments;
    int first_partial, quads;
    int values, sums;  // first quad of its rows; of its partial sums
    int first_pixel, pixels;
    int posterior;  // first quad of its image's pixels
    int labels;  // first of its image's entries in the table of quads
    int unused[4];
};

constexpr int LANES = 8;  // of splat_longs: partial sums, and quads, that a block takes at once

__device__ inline void add(float4& sum, float weight, float4 value) {
    sum.x = fmaf(weight, value.x, sum.x), sum.y = fmaf(weight, value.y, sum.y);
    sum.z = fmaf(weight, value.z, sum.z), sum.w = fmaf(weight, value.w, sum.w);
}

// log clip(score, floor, 1) in quads; lanes without a label get -infinity. labels: {first quad of the softmax, its
// quads, labels in this quad, first float in the result}; scores: address of the first plane of each quad.
// Launch: one thread a pixel, so that the planes of scores are read coalesced.
extern "C" __global__ void mean_field_prepare(const int2* blocks, const Span* spans, const int4* labels,
                                              const unsigned long long* scores, float floor, float4* logits, int* bad) {
    const int2 block = blocks[blockIdx.x];
    const Span span = spans[block.x];
    const int pixel = block.y + threadIdx.x;
    if (pixel >= span.pixels) return;
    bool finite = true;
    for (int q = 0; q < span.quads; ++q) {
        const float* planes = reinterpret_cast<const float*>(scores[span.labels + q]);
        float lanes[4];
#pragma unroll
        for (int n = 0; n < 4; ++n) {
            lanes[n] = __int_as_float(static_cast<int>(0xff800000u));
            if (n >= labels[span.labels + q].z) continue;
            const float score = planes[static_cast<size_t>(n) * span.pixels + pixel];
            finite = finite && fabsf(score) <= 3.402823466e38f;
            lanes[n] = logf(fminf(fmaxf(score, floor), 1.0f));
        }
        logits[span.posterior + static_cast<size_t>(pixel) * span.quads + q] =
            make_float4(lanes[0], lanes[1], lanes[2], lanes[3]);
    }
    if (!finite) atomicOr(bad, 1);
}

// Quads into planes [labels][H W] of each unary; one thread a pixel.
extern "C" __global__ void mean_field_unpack(const int2* blocks, const Span* spans, const int4* labels,
                                             const float4* posterior, float* planes) {
    const int2 block = blocks[blockIdx.x];
    const Span span = spans[block.x];
    const int pixel = block.y + threadIdx.x;
    if (pixel >= span.pixels) return;
    for (int q = 0; q < span.quads; ++q) {
        const int4 label = labels[span.labels + q];
        const float4 value = posterior[span.posterior + static_cast<size_t>(pixel) * span.quads + q];
        const float lanes[4] = {value.x, value.y, value.z, value.w};
#pragma unroll
        for (int n = 0; n < 4; ++n)
            if (n < label.z) planes[label.w + static_cast<size_t>(n) * span.pixels + pixel] = lanes[n];
    }
}

// Sums of segments: sum over entries of weight * Q[pixel]. segments: {row, first entry, last entry + 1, partial sum or
// -1}; entries: {pixel, weight}. Launch: one thread for a segment and quad, quads in neighbouring threads, so that a
// pixel's row is read in one piece; at most 64 entries a thread, so that no thread keeps its block waiting.
extern "C" __global__ void mean_field_splat(const int2* __restrict__ blocks, const Span* __restrict__ spans,
                                            const int4* __restrict__ segments, const int2* __restrict__ entries,
                                            const float4* __restrict__ posterior, float4* __restrict__ values,
                                            float4* __restrict__ partials) {
    const int2 block = blocks[blockIdx.x];
    if (block.x < 0) return;
    const Span span = spans[block.x];
    const int item = block.y + threadIdx.x, n = item / span.quads, q = item % span.quads;
    if (n >= span.segments) return;
    const int4 segment = segments[span.first_segment + n];
    const float4* pixels = posterior + span.posterior + q;
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 4
    for (int e = segment.y; e < segment.z; ++e) {
        const int2 entry = entries[e];
        add(sum, __int_as_float(entry.y), pixels[static_cast<size_t>(entry.x - span.first_pixel) * span.quads]);
    }
    if (segment.w < 0)
        values[span.values + static_cast<size_t>(segment.x - span.first_row) * span.quads + q] = sum;
    else
        partials[span.sums + static_cast<size_t>(segment.w - span.first_partial) * span.quads + q] = sum;
}

// Rows of several segments: sums of their partial sums. longs: {row, first partial sum, how many, span}. Launch: one
// block of LANES x LANES threads a row, each lane every LANES-th partial sum, then a tree over lanes.
extern "C" __global__ void mean_field_splat_longs(const int4* longs, const Span* spans, const float4* partials,
                                                  float4* values) {
    __shared__ float4 lanes[LANES * LANES];
    const int4 row = longs[blockIdx.x];
    if (row.w < 0) return;
    const Span span = spans[row.w];
    const int lane = threadIdx.x / LANES;
    const float4* first = partials + span.sums + static_cast<size_t>(row.y - span.first_partial) * span.quads;
    for (int base = 0; base < span.quads; base += LANES) {
        const int q = base + threadIdx.x % LANES;
        float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (q < span.quads)
            for (int n = lane; n < row.z; n += LANES) add(sum, 1.0f, first[static_cast<size_t>(n) * span.quads + q]);
        lanes[threadIdx.x] = sum;
        __syncthreads();
        for (int half = LANES / 2; half > 0; half /= 2) {
            if (lane < half) add(lanes[threadIdx.x], 1.0f, lanes[threadIdx.x + half * LANES]);
            __syncthreads();
        }
        if (lane == 0 && q < span.quads)
            values[span.values + static_cast<size_t>(row.x - span.first_row) * span.quads + q] = lanes[threadIdx.x];
        // No barrier: in the next turn each thread first writes the place that only it has read since the last one.
    }
}

// One axis: next = v + (v up + v down) / 2 with missing vertices 0. neighbours: of this axis. Launch: one thread for a
// row and quad, quads in neighbouring threads.
extern "C" __global__ void mean_field_blur(const int2* __restrict__ blocks, const Span* __restrict__ spans,
                                           const int2* __restrict__ neighbours, const float4* __restrict__ values,
                                           float4* __restrict__ next) {
    const int2 block = blocks[blockIdx.x];
    if (block.x < 0) return;
    const Span span = spans[block.x];
    const int item = block.y + threadIdx.x, n = item / span.quads, q = item % span.quads;
    if (n >= span.rows) return;
    const int2 sides = neighbours[span.first_row + n];
    const size_t place = span.values + static_cast<size_t>(n) * span.quads + q;
    const float4* rows = values + span.values + q;
    float4 sum = values[place];
    const float4 none = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    const float4 up = sides.x < 0 ? none : rows[static_cast<size_t>(sides.x - span.first_row) * span.quads];
    const float4 down = sides.y < 0 ? none : rows[static_cast<size_t>(sides.y - span.first_row) * span.quads];
    add(sum, 0.5f, make_float4(up.x + down.x, up.y + down.y, up.z + down.z, up.w + down.w));
    next[place] = sum;
}

template <int VERTICES>
__device__ inline float4 sliced(const Span& span, int pixel, int q, int total, const int* rows, const float* weights,
                                const float4* values) {
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    const float4* own = values + span.values + q;
#pragma unroll
    for (int r = 0; r < VERTICES; ++r) {
        const size_t entry = static_cast<size_t>(r) * total + span.first_pixel + pixel;
        add(sum, weights[entry], own[static_cast<size_t>(rows[entry] - span.first_row) * span.quads]);
    }
    return sum;
}

// Weights times 1 / sqrt(K 1 + 1e-20), after ones have been splatted and blurred. alpha: 1 / (1 + 2^-D), which slicing
// multiplies with. rows, weights: [VERTICES][all pixels]. Launch: one thread a pixel.
template <int VERTICES>
__device__ inline void normalise(const int2* blocks, const Span* spans, int first_span, int total, const int* rows,
                                 const float4* values, float alpha, float* weights) {
    const int2 block = blocks[blockIdx.x];
    const Span span = spans[first_span + block.x];
    const int pixel = block.y + threadIdx.x;
    if (pixel >= span.pixels) return;
    const float mass = alpha * sliced<VERTICES>(span, pixel, 0, total, rows, weights, values).x;
    const float norm = 1.0f / sqrtf(mass + 1e-20f);
#pragma unroll
    for (int r = 0; r < VERTICES; ++r) weights[static_cast<size_t>(r) * total + span.first_pixel + pixel] *= norm;
}

extern "C" __global__ void mean_field_normalise_gaussian(const int2* blocks, const Span* spans, int first_span,
                                                         int total, const int* rows, const float4* values, float alpha,
                                                         float* weights) {
    normalise<3>(blocks, spans, first_span, total, rows, values, alpha, weights);
}

extern "C" __global__ void mean_field_normalise_bilateral(const int2* blocks, const Span* spans, int first_span,
                                                          int total, const int* rows, const float4* values, float alpha,
                                                          float* weights) {
    normalise<6>(blocks, spans, first_span, total, rows, values, alpha, weights);
}

// Slice, add to the logits, softmax over the quads of each unary. factors: compatibility times alpha; with messages = 0
// only the softmax. rows, weights: three vertices of the Gaussian lattice, then six of the bilateral one.
// Launch: 256 threads, 256 / quads pixels a block, one thread for a pixel and quad, quads in neighbouring threads; the
// maximum and the sum of a pixel pass through shared memory.
extern "C" __global__ void mean_field_update(const int2* __restrict__ blocks, const Span* __restrict__ spans,
                                             int images, const int4* __restrict__ labels, int total,
                                             const int* __restrict__ rows,
                                             const float* __restrict__ weights, const float4* __restrict__ gaussian,
                                             float gaussian_factor, const float4* __restrict__ bilateral,
                                             float bilateral_factor, int messages, const float4* __restrict__ logits,
                                             float4* __restrict__ posterior) {
    __shared__ float highest[256], sums[256];
    const int2 block = blocks[blockIdx.x];
    const Span smooth = spans[block.x], colour = spans[images + block.x];
    const int quads = smooth.quads, q = threadIdx.x % quads, here = threadIdx.x - q;
    const int pixel = block.y + threadIdx.x / quads;
    const bool active = threadIdx.x / quads < blockDim.x / quads && pixel < smooth.pixels;
    const size_t place = smooth.posterior + static_cast<size_t>(pixel) * quads + q;
    float4 value = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    int4 label = make_int4(0, 0, 0, 0);
    if (active) {
        label = labels[smooth.labels + q];
        value = logits[place];
        if (messages) {
            add(value, gaussian_factor, sliced<3>(smooth, pixel, q, total, rows, weights, gaussian));
            const size_t skipped = 3 * static_cast<size_t>(total);
            add(value, bilateral_factor,
                sliced<6>(colour, pixel, q, total, rows + skipped, weights + skipped, bilateral));
        }
    }
    highest[threadIdx.x] = fmaxf(fmaxf(value.x, value.y), fmaxf(value.z, value.w));
    __syncthreads();
    float most = highest[here + label.x];
    for (int n = 1; n < label.y; ++n) most = fmaxf(most, highest[here + label.x + n]);
    value = make_float4(expf(value.x - most), expf(value.y - most), expf(value.z - most), expf(value.w - most));
    sums[threadIdx.x] = (value.x + value.y) + (value.z + value.w);
    __syncthreads();
    float sum = 0.0f;
    for (int n = 0; n < label.y; ++n) sum += sums[here + label.x + n];
    if (active) posterior[place] = make_float4(value.x / sum, value.y / sum, value.z / sum, value.w / sum);
}
