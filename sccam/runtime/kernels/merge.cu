// Class maps of one image:   M = sum over scales of resize(view + mirrored view),   M / (max over cells of M + 1e-5)
//
// The resize is bilinear with pixel centres at half (align_corners False), clamped at the border, positions in single
// precision as torch computes them.

// scales: {height, width, views, unused}; maps: address of each scale's [views][P][h][w]; the second view is mirrored.
// Launch: one thread for an output cell of one class, cells along x in neighbouring threads; it visits all scales, so
// the sum never leaves its register.
extern "C" __global__ void merge(const int4* __restrict__ scales, const unsigned long long* __restrict__ maps,
                                 int scale_count, int classes, int height, int width, float* __restrict__ merged) {
    const int item = blockIdx.x * blockDim.x + threadIdx.x, cells = height * width;
    const int p = item / cells, y = item % cells / width, x = item % cells % width;
    if (p >= classes) return;
    float total = 0.0f;
    for (int s = 0; s < scale_count; ++s) {
        const int h = scales[s].x, w = scales[s].y, views = scales[s].z;
        const float place_y = fmaxf((y + 0.5f) * (static_cast<float>(h) / height) - 0.5f, 0.0f);
        const float place_x = fmaxf((x + 0.5f) * (static_cast<float>(w) / width) - 0.5f, 0.0f);
        const int top = min(static_cast<int>(place_y), h - 1), left = min(static_cast<int>(place_x), w - 1);
        const int bottom = min(top + 1, h - 1), right = min(left + 1, w - 1);
        const float down = place_y - top, across = place_x - left;
        const float* map = reinterpret_cast<const float*>(maps[s]) + static_cast<size_t>(p) * h * w;
        float corners[4];
#pragma unroll
        for (int n = 0; n < 4; ++n) {
            const int row = (n < 2 ? top : bottom) * w, column = n % 2 ? right : left;
            corners[n] = map[row + column];
            if (views == 2) corners[n] += map[static_cast<size_t>(classes) * h * w + row + w - 1 - column];
        }
        total += (1.0f - down) * ((1.0f - across) * corners[0] + across * corners[1]) +
                 down * ((1.0f - across) * corners[2] + across * corners[3]);
    }
    merged[item] = total;
}

// Launch: one block of 256 threads for a class; a map of some ten thousand cells is some forty cells a thread.
extern "C" __global__ void divide_by_maximum(int cells, float epsilon, float* merged) {
    __shared__ float highest[256];
    float* map = merged + static_cast<size_t>(blockIdx.x) * cells;
    float own = 0.0f;
    for (int n = threadIdx.x; n < cells; n += blockDim.x) own = fmaxf(own, map[n]);
    highest[threadIdx.x] = own;
    __syncthreads();
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) highest[threadIdx.x] = fmaxf(highest[threadIdx.x], highest[threadIdx.x + half]);
        __syncthreads();
    }
    const float divisor = highest[0] + epsilon;
    for (int n = threadIdx.x; n < cells; n += blockDim.x) map[n] /= divisor;
}
