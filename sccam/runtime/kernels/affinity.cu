// Affinities of a batch:   values[r][i] = exp(-mean over channels of |f_i - f_(i + offset r)|),  0 outside of the grid
//
// Launch: one thread for one cell and OFFSETS offsets, cells along x in neighbouring threads, so that all loads are
// coalesced; f_i is read once for OFFSETS differences. A group's neighbours lie close together and come from L1.
// Differences are added up in runs of RUN channels, the runs' sums after that: the error stays near one rounding for
// thousands of channels.

constexpr int OFFSETS = 4;  // affinity_cupy.py, OFFSETS
constexpr int RUN = 32;

// images: {channels, height, width, first float of its values}. bad becomes 1 where a feature is not finite.
extern "C" __global__ void affinity(const int2* __restrict__ blocks, const int4* __restrict__ images,
                                    const unsigned long long* __restrict__ features, const int2* __restrict__ offsets,
                                    int offset_count, float* __restrict__ values, int* bad) {
    const int2 block = blocks[blockIdx.x];
    const int channels = images[block.x].x, height = images[block.x].y, width = images[block.x].z;
    const int item = block.y + threadIdx.x, cells = height * width;
    const int first = item / cells * OFFSETS, cell = item % cells;
    if (first >= offset_count) return;
    const int y = cell / width, x = cell % width;

    int other[OFFSETS];  // the cell itself where the neighbour lies outside
    bool inside[OFFSETS];
    float sum[OFFSETS];
#pragma unroll
    for (int n = 0; n < OFFSETS; ++n) {
        const int2 offset = offsets[min(first + n, offset_count - 1)];
        const int other_y = y + offset.x, other_x = x + offset.y;
        inside[n] = other_y >= 0 && other_y < height && other_x >= 0 && other_x < width;
        other[n] = inside[n] ? other_y * width + other_x : cell;
        sum[n] = 0.0f;
    }
    const float* plane = reinterpret_cast<const float*>(features[block.x]);
    bool finite = true;
    for (int run = 0; run < channels; run += RUN) {
        float part[OFFSETS] = {};
        const int last = min(run + RUN, channels);
        for (int d = run; d < last; ++d, plane += cells) {
            const float own = plane[cell];
            finite = finite && fabsf(own) <= 3.402823466e38f;
#pragma unroll
            for (int n = 0; n < OFFSETS; ++n) part[n] += fabsf(own - plane[other[n]]);
        }
#pragma unroll
        for (int n = 0; n < OFFSETS; ++n) sum[n] += part[n];
    }
    if (!finite) atomicOr(bad, 1);
#pragma unroll
    for (int n = 0; n < OFFSETS; ++n)
        if (first + n < offset_count)
            values[images[block.x].w + static_cast<size_t>(first + n) * cells + cell] =
                inside[n] ? expf(-sum[n] / static_cast<float>(channels)) : 0.0f;
}
