// Permutohedral lattices of a batch of images: for each pixel the D + 1 vertices around it and its weights there.
//
//     e = E f = sum over vertices of weight * vertex,   f = (x, y) / sxy  or  (x, y) / sxy, (r, g, b) / srgb
//
// Source of the geometry: Adams, Baek & Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice",
// Eurographics 2010, sections 3.1 and 3.2. Roundings are those of the pydensecrf library, step by step, so that every
// pixel meets the same vertices; hence the functions __fmul_rn and so on, which no compiler merges.
// The library pads an image to a multiple of four pixels with features of zero, which adds vertices where nothing is
// splatted but blur passes through; here one such pixel does the same.
//
// Keys. All coordinates of a vertex are equal modulo D + 1, so coordinate i is (D + 1) m_i + residue. A key is, from
// the top: image (6 bits), residue (3), m_0 ... m_(D-1), BITS each, biased. One step along an axis changes each m by at
// most one, and m stays one away from the ends of its field, so that no step carries into another field.
//
// Inserting is a single compare-and-swap of the whole key into a slot of an open-addressing table. A slot changes once,
// from EMPTY to its key; whoever reads it sees one or the other, there is nothing to lock and nothing to publish. Which
// slot a key gets depends on the order of threads; so keys are sorted afterwards, and a vertex's row is its rank.

constexpr unsigned long long EMPTY = ~0ull;  // no key: its residue would be 7
constexpr int MOST_PROBES = 256;  // more means that the table is too full; the host takes a larger one
constexpr int SEGMENT = 64;  // contributions that one thread adds up; crf_lattice.py, SEGMENT
constexpr int OVERFLOW_FLAG = 1, FULL_FLAG = 2;  // crf_lattice.py

template <int D>
struct Key {
    static constexpr int BITS = D == 2 ? 24 : (64 - 6 - 3) / D;
    static constexpr int BIAS = 1 << (BITS - 1);
    static constexpr unsigned long long RESIDUE = 1ull << (D * BITS);
    static constexpr unsigned long long IMAGE = RESIDUE << 3;

    __device__ static unsigned long long field(int n) { return 1ull << (n * BITS); }
    __device__ static unsigned long long all_fields() {
        unsigned long long sum = 0;
        for (int n = 0; n < D; ++n) sum |= field(n);
        return sum;
    }

    // The vertex next to this one along an axis: +1 in all coordinates but -D in one, or the opposite.
    __device__ static unsigned long long neighbour(unsigned long long key, int axis, bool up) {
        const int residue = static_cast<int>(key / RESIDUE % 8);
        if (up) {
            key = residue < D ? key + RESIDUE : key - D * RESIDUE + all_fields();
            return axis < D ? key - field(axis) : key;
        }
        key = residue > 0 ? key - RESIDUE : key + D * RESIDUE - all_fields();
        return axis < D ? key + field(axis) : key;
    }
};

__device__ inline unsigned long long peek(const unsigned long long* slot) {
#ifdef __CUDA_ARCH__
    unsigned long long key;  // relaxed: other threads may write it now
    asm volatile("ld.relaxed.gpu.u64 %0, [%1];" : "=l"(key) : "l"(slot) : "memory");
    return key;
#else
    return __atomic_load_n(slot, __ATOMIC_RELAXED);
#endif
}

__device__ inline unsigned first_slot(unsigned long long key, unsigned mask) {
    key = (key ^ (key >> 31)) * 0x9E3779B97F4A7C15ull;
    key = (key ^ (key >> 29)) * 0xD6E8FEB86659FD93ull;
    return static_cast<unsigned>(key >> 32) & mask;
}

__device__ inline int inserted(unsigned long long* table, unsigned mask, unsigned long long key, int* flags) {
    unsigned slot = first_slot(key, mask);
    for (int probe = 0; probe < MOST_PROBES; ++probe, slot = (slot + 1) & mask) {
        unsigned long long seen = peek(table + slot);
        if (seen == EMPTY) seen = atomicCAS(table + slot, EMPTY, key);
        if (seen == EMPTY || seen == key) return static_cast<int>(slot);
    }
    atomicOr(flags, FULL_FLAG);
    return 0;
}

// The slot of a key or -1; the table is at most half full and nobody writes to it.
__device__ inline int found(const unsigned long long* table, unsigned mask, unsigned long long key) {
    for (unsigned slot = first_slot(key, mask);; slot = (slot + 1) & mask) {
        if (table[slot] == key) return static_cast<int>(slot);
        if (table[slot] == EMPTY) return -1;
    }
}

// How many of `count` ascending keys are smaller than `key`.
__device__ inline int rank_of(const unsigned long long* keys, int count, unsigned long long key) {
    int low = 0, high = count;
    while (low < high) {
        const int middle = low + (high - low) / 2;
        if (keys[middle] < key) low = middle + 1; else high = middle;
    }
    return low;
}

// Inserts the vertices of one pixel. All loops are unrolled, so that the small arrays stay in registers.
template <int D>
__device__ inline void insert(unsigned long long image, const float* f, const float* scales, int pixel, bool real,
                              int total, unsigned long long* table, unsigned mask, int* slots, float* weights,
                              int* flags) {
    // Onto the plane where coordinates sum to zero.
    float e[D + 1];
    float sum = 0.0f;
#pragma unroll
    for (int j = D; j > 0; --j) {
        const float part = __fmul_rn(f[j - 1], scales[j - 1]);
        e[j] = __fsub_rn(sum, __fmul_rn(static_cast<float>(j), part));
        sum = __fadd_rn(sum, part);
    }
    e[0] = sum;

    // Nearest point whose coordinates are multiples of D + 1, and the rank of each distance from it, largest first.
    float cell[D + 1], rest[D + 1];
    int rank[D + 1];
    float off = 0.0f;  // how far the rounded point lies off the plane, in multiples of D + 1
#pragma unroll
    for (int i = 0; i <= D; ++i) {
        cell[i] = rintf(__fmul_rn(1.0f / (D + 1), e[i]));
        rest[i] = __fsub_rn(e[i], __fmul_rn(cell[i], static_cast<float>(D + 1)));
        off += cell[i];
        rank[i] = 0;
    }
#pragma unroll
    for (int i = 0; i < D; ++i)
#pragma unroll
        for (int j = i + 1; j <= D; ++j) {
            const bool smaller = rest[i] < rest[j];
            rank[i] += smaller ? 1 : 0;
            rank[j] += smaller ? 0 : 1;
        }
    // Back onto the plane: the coordinates that were rounded farthest take the step.
    bool fits = fabsf(off) <= static_cast<float>(D + 1);
#pragma unroll
    for (int i = 0; i <= D; ++i) {
        rank[i] += fits ? static_cast<int>(off) : 0;
        const int step = rank[i] < 0 ? 1 : rank[i] > D ? -1 : 0;
        rank[i] += step * (D + 1);
        cell[i] += static_cast<float>(step);
        rest[i] = __fmul_rn(__fsub_rn(e[i], __fmul_rn(cell[i], static_cast<float>(D + 1))), 1.0f / (D + 1));
        fits = fits && fabsf(cell[i]) < static_cast<float>(Key<D>::BIAS - 3);  // false for NaN, too
    }
    if (!fits) atomicOr(flags, OVERFLOW_FLAG);

    // by_rank[k]: the distance of rank k. Weight of vertex r: by_rank[D - r] - by_rank[D - r + 1]; vertex 0 the rest.
    float by_rank[D + 1];
#pragma unroll
    for (int k = 0; k <= D; ++k) {
        by_rank[k] = 0.0f;
#pragma unroll
        for (int i = 0; i <= D; ++i) by_rank[k] = rank[i] == k ? rest[i] : by_rank[k];
    }
#pragma unroll
    for (int r = 0; r <= D; ++r) {
        unsigned long long key = image * Key<D>::IMAGE + r * Key<D>::RESIDUE;
#pragma unroll
        for (int i = 0; i < D; ++i) {
            const int m = (fits ? static_cast<int>(cell[i]) : 0) - (rank[i] > D - r ? 1 : 0) + Key<D>::BIAS;
            key += static_cast<unsigned long long>(m) << (i * Key<D>::BITS);
        }
        const int slot = fits ? inserted(table, mask, key, flags) : 0;
        if (!real) continue;
        slots[static_cast<size_t>(r) * total + pixel] = slot;
        weights[static_cast<size_t>(r) * total + pixel] =
            r == 0 ? __fadd_rn(by_rank[D], __fsub_rn(1.0f, by_rank[0])) : __fsub_rn(by_rank[D - r], by_rank[D - r + 1]);
    }
}

// images: {first pixel, width, height, 1 where there is a padding pixel}. One thread a pixel, 256 threads: the kernel
// is bound by the table in L2, and neighbouring pixels mostly meet the same slots. slots, weights: [D + 1][all pixels].
extern "C" __global__ void lattice_insert_gaussian(const int2* blocks, const int4* images, const float* scales,
                                                   float sxy, int total, unsigned long long* table, int mask,
                                                   int* slots, float* weights, int* flags) {
    const int2 block = blocks[blockIdx.x];
    const int4 image = images[block.x];
    const int pixel = block.y + threadIdx.x, count = image.y * image.z;
    if (pixel >= count + image.w) return;
    float f[2] = {};
    if (pixel < count) {
        f[0] = __fdiv_rn(static_cast<float>(pixel % image.y), sxy);
        f[1] = __fdiv_rn(static_cast<float>(pixel / image.y), sxy);
    }
    insert<2>(block.x, f, scales, image.x + pixel, pixel < count, total, table, mask, slots, weights, flags);
}

// colours: address of each image's u8 [H][W][3].
extern "C" __global__ void lattice_insert_bilateral(const int2* blocks, const int4* images,
                                                    const unsigned long long* colours, const float* scales, float sxy,
                                                    float srgb, int total, unsigned long long* table, int mask,
                                                    int* slots, float* weights, int* flags) {
    const int2 block = blocks[blockIdx.x];
    const int4 image = images[block.x];
    const int pixel = block.y + threadIdx.x, count = image.y * image.z;
    if (pixel >= count + image.w) return;
    float f[5] = {};
    if (pixel < count) {
        const unsigned char* plane = reinterpret_cast<const unsigned char*>(colours[block.x]);
        const unsigned char* colour = plane + 3 * static_cast<size_t>(pixel);
        f[0] = __fdiv_rn(static_cast<float>(pixel % image.y), sxy);
        f[1] = __fdiv_rn(static_cast<float>(pixel / image.y), sxy);
        for (int n = 0; n < 3; ++n) f[2 + n] = __fdiv_rn(static_cast<float>(colour[n]), srgb);
    }
    insert<5>(block.x, f, scales, image.x + pixel, pixel < count, total, table, mask, slots, weights, flags);
}

// Keys of all full slots, in any order. One thread a slot.
extern "C" __global__ void lattice_keys(const unsigned long long* table, int slots, unsigned long long* keys,
                                        int* count) {
    const int slot = blockIdx.x * blockDim.x + threadIdx.x;
    if (slot < slots && table[slot] != EMPTY) keys[atomicAdd(count, 1)] = table[slot];
}

// The rank of the key in each full slot. One thread a key.
extern "C" __global__ void lattice_rows(const unsigned long long* keys, int count, const unsigned long long* table,
                                        int mask, int* row_of_slot) {
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row < count) row_of_slot[found(table, mask, keys[row])] = row;
}

// Slots of pixels become rows, and entries get a key that sorts them by row, then vertex number, then pixel. One thread
// an entry; entry = vertex number * all pixels + pixel.
extern "C" __global__ void lattice_entries(const int* row_of_slot, int entries, int first_row, int* slots,
                                           unsigned long long* order) {
    const int entry = blockIdx.x * blockDim.x + threadIdx.x;
    if (entry >= entries) return;
    const int row = row_of_slot[slots[entry]];
    slots[entry] = first_row + row;
    order[entry] = static_cast<unsigned long long>(row) << 32 | static_cast<unsigned>(entry);
}

template <int D>
__device__ inline void neighbours_of(const unsigned long long* keys, int count, const unsigned long long* table,
                                     int mask, const int* row_of_slot, int first_row, int stride, int2* neighbours) {
    const int item = blockIdx.x * blockDim.x + threadIdx.x, row = item % count, axis = item / count;
    if (axis > D) return;
    const int up = found(table, mask, Key<D>::neighbour(keys[row], axis, true));
    const int down = found(table, mask, Key<D>::neighbour(keys[row], axis, false));
    neighbours[static_cast<size_t>(axis) * stride + first_row + row] =
        make_int2(up < 0 ? -1 : first_row + row_of_slot[up], down < 0 ? -1 : first_row + row_of_slot[down]);
}

// neighbours: {row, row} or -1, [axis][stride]. One thread a vertex and axis.
extern "C" __global__ void lattice_neighbours_gaussian(const unsigned long long* keys, int count,
                                                       const unsigned long long* table, int mask,
                                                       const int* row_of_slot, int first_row, int stride,
                                                       int2* neighbours) {
    neighbours_of<2>(keys, count, table, mask, row_of_slot, first_row, stride, neighbours);
}

extern "C" __global__ void lattice_neighbours_bilateral(const unsigned long long* keys, int count,
                                                        const unsigned long long* table, int mask,
                                                        const int* row_of_slot, int first_row, int stride,
                                                        int2* neighbours) {
    neighbours_of<5>(keys, count, table, mask, row_of_slot, first_row, stride, neighbours);
}

// first_entry[row]: where a row's entries begin in their order; one thread a row and one for the end.
extern "C" __global__ void lattice_row_starts(const unsigned long long* order, int entries, int count,
                                              int* first_entry) {
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row <= count) first_entry[row] = rank_of(order, entries, static_cast<unsigned long long>(row) << 32);
}

// How a row is split: its segments of at most SEGMENT entries (a row without entries has one that is empty); 1 where it
// is long, that is has several; and how many partial sums it needs. One thread a row.
extern "C" __global__ void lattice_split(const int* first_entry, int count, int* segments, int* longs, int* partials) {
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= count) return;
    const int parts = max(1, (first_entry[row + 1] - first_entry[row] + SEGMENT - 1) / SEGMENT);
    segments[row] = parts;
    longs[row] = parts > 1 ? 1 : 0;
    partials[row] = parts > 1 ? parts : 0;
}

// {row, segment, long row, partial sum} with which each image begins; one thread an image and one for the end.
// shift: how far the image lies above the lowest bit of a key.
extern "C" __global__ void lattice_bounds(const unsigned long long* keys, int count, int images, int shift,
                                          const int* first_segment, const int* first_long, const int* first_partial,
                                          int4* bounds) {
    const int image = blockIdx.x * blockDim.x + threadIdx.x;
    if (image > images) return;
    const int row = image == images ? count : rank_of(keys, count, static_cast<unsigned long long>(image) << shift);
    bounds[image] = make_int4(row, first_segment[row], first_long[row], first_partial[row]);
}

// segments[n] = {row, first entry, last entry + 1, its partial sum or -1 where it is the whole row}, numbered over both
// lattices. One thread a segment.
extern "C" __global__ void lattice_segments(const int* first_entry, const int* first_segment, const int* first_partial,
                                            int count, int segment_count, int row_base, int segment_base,
                                            int entry_base, int partial_base, int4* segments) {
    const int segment = blockIdx.x * blockDim.x + threadIdx.x;
    if (segment >= segment_count) return;
    int row = 0, high = count;  // the last row that begins at or before this segment
    while (row + 1 < high) {
        const int middle = row + (high - row) / 2;
        if (first_segment[middle] <= segment) row = middle; else high = middle;
    }
    const int part = segment - first_segment[row];
    const int first = first_entry[row] + part * SEGMENT, last = min(first + SEGMENT, first_entry[row + 1]);
    const bool whole = first_segment[row + 1] - first_segment[row] == 1;
    segments[segment_base + segment] = make_int4(row_base + row, entry_base + first, entry_base + last,
                                                 whole ? -1 : partial_base + first_partial[row] + part);
}

// longs[n] = {row, first partial sum, how many, span}, numbered over both lattices. One thread a row.
extern "C" __global__ void lattice_longs(const unsigned long long* keys, int shift, const int* first_segment,
                                         const int* first_long, const int* first_partial, int count, int row_base,
                                         int long_base, int partial_base, int span_base, int4* longs) {
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= count || first_long[row + 1] == first_long[row]) return;
    longs[long_base + first_long[row]] =
        make_int4(row_base + row, partial_base + first_partial[row], first_segment[row + 1] - first_segment[row],
                  span_base + static_cast<int>(keys[row] >> shift));
}

// entries[n] = {pixel, weight} in the order of rows. One thread an entry.
extern "C" __global__ void lattice_contributions(const unsigned long long* order, int count, int total, int entry_base,
                                                 const float* weights, int2* entries) {
    const int n = blockIdx.x * blockDim.x + threadIdx.x;
    if (n >= count) return;
    const unsigned entry = static_cast<unsigned>(order[n]);
    entries[entry_base + n] = make_int2(static_cast<int>(entry % total), __float_as_int(weights[entry]));
}
