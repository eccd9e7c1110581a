// Wrong on purpose: what the sanitizers must find, or their silence means nothing. out has one value a block.

// One barrier, and none between changing a neighbour's value and reading one's own.
extern "C" __global__ void without_barrier(float* out) {
    __shared__ float values[32];
    values[threadIdx.x] = 1.0f;
    __syncthreads();
    values[(threadIdx.x + 1) % 32] += 1.0f;
    if (values[threadIdx.x] > 1.0f) out[blockIdx.x] = 2.0f;
}

// All threads write one value.
extern "C" __global__ void one_place(float* out) { out[0] = static_cast<float>(threadIdx.x); }

// One value too many.
extern "C" __global__ void beyond(float* out) { out[gridDim.x] = 1.0f; }
