// Sums over taps of panels: the forward and the input gradient of a sparse convolution are products (a tile of outputs in
// registers, one broadcast value and R * V fused multiply-adds a tap), the weight gradient is dot products of planes.
// Bound by the loads of the panel from L2: 90 to 105 GFLOP/s on a Zen 5 core against 250 from registers, 58 from L3.
// The order of a sum is that of its list, whatever the tile, the lanes and the threads.
// (The preprocessor does not know the instruction set here, the types do.)
constexpr bool kWide = alignof(F32) == 64;
constexpr int kTileVectors = kWide ? 16 : 4, kDots = kWide ? 8 : 4;

// ---- panels ----

// `images` images from `from` into the panel; lanes past them become 0. What is padding is not touched.
template <class T>
void fill_panel(const Panel& p, const T* from, int64_t image, int64_t images, Arith<T>* panel) {
  using A = Arith<T>;
  if (p.lanes == 1) {
    const int32_t step = static_cast<int32_t>(p.step);
    int32_t index[16];
    for (int k = 0; k < 16; ++k) index[k] = static_cast<int32_t>(std::min<int64_t>(k * p.step, p.positions));
    for (int64_t c = 0; c < p.channels; ++c, from += p.positions, panel += p.channel) {
      for (const Run& run : p.runs) {
        const T* read = from + run.from;
        A* write = panel + run.to;
        int32_t i = 0;
        for (; i + 16 <= run.count; i += 16) store(write + i, step == 1 ? load(read + i) : gather(read + i * step, index));
        if (step == 1 && i < run.count && i > 0) {  // the last vector may overlap the one before
          store(write + run.count - 16, load(read + run.count - 16));
        } else {
          for (; i < run.count; ++i) write[i] = static_cast<A>(read[i * step]);
        }
      }
    }
    return;
  }
  // Sixteen positions of sixteen images at a time; all loops are unrolled, so that the block stays in registers.
  const int64_t total = p.channels * p.positions;
  for (int64_t first = 0, position = 0; first < total; first += 16) {
    const int some = static_cast<int>(std::min<int64_t>(16, total - first));
    Vec<A> r[16];
    if (images == 16 && some == 16) {
#pragma GCC unroll 16
      for (int k = 0; k < 16; ++k) r[k] = load(from + k * image + first);
    } else {
#pragma GCC unroll 16
      for (int k = 0; k < 16; ++k) r[k] = k < images ? load_some(from + k * image + first, some) : splat(A(0));
    }
    transpose(r);
#pragma GCC unroll 16
    for (int k = 0; k < 16; ++k) {
      if (k < some && p.place[position] >= 0) store(panel + p.place[position], r[k]);
      if (++position == p.positions) position = 0, panel += p.channel;
    }
  }
}

// ---- products ----

// One tile: R rows of V vectors.
template <int R, int V, class A>
void product_tile(const Tap<A>* tap, const Tap<A>* end, const A* panel, int64_t row, A first, A* out, int64_t out_row) {
  Vec<A> sum[R][V];
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < V; ++j) sum[i][j] = splat(first);
  for (; tap < end; ++tap) {
    const A* at = panel + tap->at;
    const Vec<A> value = splat(tap->value);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 16
      for (int j = 0; j < V; ++j) sum[i][j] = fused(value, load(at + i * row + 16 * j), sum[i][j]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < V; ++j) store(out + i * out_row + 16 * j, sum[i][j]);
}

template <class A>
using TileFunction = void (*)(const Tap<A>*, const Tap<A>*, const A*, int64_t, A, A*, int64_t);

template <int R, int V, class A>
TileFunction<A> tile_of(int vectors) {
  if constexpr (V > 1 && R * V > kTileVectors) return tile_of<R, V - 1, A>(vectors);
  else if constexpr (V > 1) return vectors == V ? &product_tile<R, V, A> : tile_of<R, V - 1, A>(vectors);
  else return &product_tile<R, 1, A>;
}
template <class A>
TileFunction<A> tile_of(int rows, int vectors) {
  if constexpr (kTileVectors >= 8)
    if (rows == 8) return tile_of<8, 8, A>(vectors);
  return rows == 4 ? tile_of<4, 8, A>(vectors) : rows == 2 ? tile_of<2, 8, A>(vectors) : tile_of<1, 8, A>(vectors);
}

// The largest power of two that is at most both; both are at least 1.
SK_INLINE int power_of_two_below(int64_t a, int64_t b) { return static_cast<int>(uint64_t{1} << (63 - __builtin_clzll(std::min(a, b)))); }

// Finished rows [first, first + rows) of one phase's plane, out of `band` (vectors of lanes or of columns).
template <class T>
void store_band(const ProductJob<T>& job, const OutputPhase& phase, const Arith<T>* band, int64_t first, int rows, T* plane, int64_t images) {
  using A = Arith<T>;
  const int64_t width = phase.columns, band_row = job.panel->lanes == 1 ? (width + 15) / 16 * 16 : width * 16;
  T* to = plane + (phase.row + first * job.row_step) * job.out_width + phase.column;
  if (job.panel->lanes == 1) {
    for (int i = 0; i < rows; ++i, band += band_row, to += job.row_step * job.out_width) {
      if (job.column_step != 1) {
        for (int64_t j = 0; j < width; ++j) to[j * job.column_step] = static_cast<T>(band[j]);
      } else {
        for (int64_t j = 0; j < width; j += 16) store_some(to + j, load(band + j), static_cast<int>(std::min<int64_t>(16, width - j)));
      }
    }
    return;
  }
  if (job.column_step == 1 && job.row_step == 1) {  // one stretch of the plane in every image
    for (int64_t p = 0; p < rows * width; p += 16) {
      const int some = static_cast<int>(std::min<int64_t>(16, rows * width - p));
      Vec<A> r[16];
#pragma GCC unroll 16
      for (int k = 0; k < 16; ++k) r[k] = k < some ? load(band + (p + k) * 16) : splat(A(0));
      transpose(r);
      if (images == 16 && some == 16) {
#pragma GCC unroll 16
        for (int k = 0; k < 16; ++k) store(to + k * job.out_image + p, r[k]);
      } else {
        for (int k = 0; k < images; ++k) store_some(to + k * job.out_image + p, r[k], some);
      }
    }
    return;
  }
  for (int64_t k = 0; k < images; ++k)
    for (int i = 0; i < rows; ++i)
      for (int64_t j = 0; j < width; ++j)
        to[k * job.out_image + i * job.row_step * job.out_width + j * job.column_step] = static_cast<T>(band[i * band_row + j * 16 + k]);
}

// Output planes [first, last) of one panel of images. As many rows at a time as stay in L2, for one plane after the other.
template <class T>
void product_planes(const ProductJob<T>& job, const Arith<T>* panel, Arith<T>* band, int64_t image, int64_t images, int64_t first, int64_t last) {
  using A = Arith<T>;
  const Panel& p = *job.panel;
  const int64_t phases = static_cast<int64_t>(job.phases.size());
  for (int64_t f = 0; f < phases; ++f) {
    const OutputPhase& phase = job.phases[f];
    const int64_t vectors = p.lanes == 1 ? (phase.columns + 15) / 16 : phase.columns;
    // Rows are cut into tiles of about equal width: a narrow rest would wait for its own sums.
    constexpr int kWidest = std::min(8, kTileVectors);
    const int64_t across = (vectors + kWidest - 1) / kWidest;
    const int widest = static_cast<int>((vectors + across - 1) / across);
    const int most_rows = power_of_two_below(8, std::max(1, (p.lanes == 1 ? kWidest : kTileVectors) / widest));
    // Whole vectors of single images in the arithmetic's own type need no band.
    const bool direct = std::is_same_v<T, A> && p.lanes == 1 && job.column_step == 1 && phase.columns % 16 == 0;
    const int64_t out_row = direct ? job.row_step * job.out_width : vectors * 16;
    for (int64_t h = 0; h < phase.rows;) {
      const int64_t top = h, stop = std::min(phase.rows, h + std::max<int64_t>(1, job.rows_at_once / most_rows) * most_rows);
      for (int64_t plane = first; plane < last; ++plane) {
        const int64_t list = plane * phases + f;
        const Tap<A>*tap = job.taps + job.begin[list], *end = job.taps + job.begin[list + 1];
        const A bias = job.bias ? static_cast<A>(job.bias[plane]) : A(0);
        T* const out = job.out + image * job.out_image + plane * job.out_plane;
        for (h = top; h < stop;) {
          const int rows = power_of_two_below(stop - h, most_rows);
          A* to = direct ? reinterpret_cast<A*>(out + (phase.row + h * job.row_step) * job.out_width + phase.column) : band;
          for (int64_t v = 0, left = across; left > 0; --left) {
            const int wide = static_cast<int>((vectors - v + left - 1) / left);
            tile_of<A>(rows, wide)(tap, end, panel + h * p.row + v * 16, p.row, bias, to + v * 16, out_row);
            v += wide;
          }
          if (!direct) store_band(job, phase, band, h, rows, out, images);
          h += rows;
        }
      }
    }
  }
}

// Units [begin, end), each a block of output planes of one panel; the panel is filled when it changes.
template <class T>
void product_units(const ProductJob<T>& job, int64_t begin, int64_t end) {
  using A = Arith<T>;
  const Panel& p = *job.panel;
  const int64_t size = (p.size() + 15) / 16 * 16;
  Scratch scratch((size + job.band) * sizeof(A));
  A *panel = scratch.at<A>(0), *band = panel + size;
  std::memset(static_cast<void*>(panel), 0, p.size() * sizeof(A));
  for (int64_t unit = begin; unit < end;) {
    const int64_t image = unit / job.blocks * p.lanes, block = unit % job.blocks, blocks = std::min(job.blocks - block, end - unit);
    const int64_t images = std::min(p.lanes, job.images - image);
    fill_panel(p, job.in + image * job.in_image, job.in_image, images, panel);
    product_planes(job, panel, band, image, images, block * job.block, std::min(job.planes, (block + blocks) * job.block));
    unit += blocks;
  }
}

// ---- dot products ----

// sums[k] = lanes of the dot product of `plane` with the panel at tap k, over all rows of all images.
template <int E, class A>
SK_INLINE void dot_planes(const DotGeometry& d, int64_t images, const Tap<A>* taps, int count, const A* panel, const A* plane, Vec<A>* sums) {
  const A* at[E];
  Vec<A> sum[E];
  A zero = 0;
  __asm__("" : "+m"(zero));  // else the sums are cleared as an array in memory
#pragma GCC unroll 8
  for (int k = 0; k < E; ++k) {
    at[k] = panel + taps[std::min(k, count - 1)].at;
    __asm__("" : "+r"(at[k]));  // else the addresses become differences and go through vectors
    sum[k] = splat(zero);
  }
  const int64_t rows = d.rows, row = d.row, whole = d.tail == 16 ? d.vectors : d.vectors - 1;
  const Mask16 inside = static_cast<Mask16>((1u << d.tail) - 1);
  // One index for all taps: the addresses are then base + index, and nothing but the index moves.
  for (int64_t n = 0; n < images; ++n, plane += d.plane_image) {
    const A* g_at = plane;
    int64_t index = n * d.panel_image;
    if (d.vectors == 1 && d.tail == 16) {
#pragma GCC unroll 2
      for (int64_t i = 0; i < rows; ++i, index += row) {
        const Vec<A> g = load(g_at + 16 * i);
#pragma GCC unroll 8
        for (int k = 0; k < E; ++k) sum[k] = fused(g, load(at[k] + index), sum[k]);
      }
      continue;
    }
    for (int64_t i = 0; i < rows; ++i, index += row - 16 * whole) {
      for (const int64_t stop = index + 16 * whole; index < stop; index += 16, g_at += 16) {
        const Vec<A> g = load(g_at);
#pragma GCC unroll 8
        for (int k = 0; k < E; ++k) sum[k] = fused(g, load(at[k] + index), sum[k]);
      }
      if (d.tail == 16) continue;
      const Vec<A> g = load(g_at);
      g_at += 16;
#pragma GCC unroll 8
      for (int k = 0; k < E; ++k) sum[k] = fused(g, select(inside, load(at[k] + index), splat(A(0))), sum[k]);
    }
  }
#pragma GCC unroll 8
  for (int k = 0; k < E; ++k) sums[k] = sum[k];
}

// out[k] += the dot product of `plane` with the panel at each of `count` taps.
template <class A>
void dots(const DotGeometry& d, int64_t images, const Tap<A>* taps, int64_t count, const A* panel, const A* plane, double* out) {
  for (int64_t e = 0; e < count; e += 16) {
    const int some = static_cast<int>(std::min<int64_t>(16, count - e));
    Vec<A> sums[16];
    int k = 0;
    while (k < some) {
      const int left = some - k;
      if (left > 4 && kDots == 8) {
        dot_planes<kDots>(d, images, taps + e + k, left, panel, plane, sums + k);
        k += kDots;
      } else {
        dot_planes<4>(d, images, taps + e + k, left, panel, plane, sums + k);
        k += 4;
      }
    }
    for (; k < 16; ++k) sums[k] = sums[0];
    A total[16];
    store(total, sums_of_rows(sums));
    if (some == 16) {  // a known count becomes vectors
      for (int i = 0; i < 16; ++i) out[e + i] += total[i];
    } else {
      for (int i = 0; i < some; ++i) out[e + i] += total[i];
    }
  }
}

// Units [begin, end), each a block of output planes over one chunk of images; sums of a chunk go to its own row of `partial`.
template <class T>
void weight_units(const WeightJob<T>& job, int64_t begin, int64_t end) {
  using A = Arith<T>;
  const Panel &p = *job.panel, &q = *job.plain;
  const DotGeometry& d = job.geometry;
  const int64_t size = job.group * d.panel_image + 16, all = size + (job.direct ? 0 : job.group * d.plane_image);
  Scratch scratch(all * sizeof(A));
  A *panel = scratch.at<A>(0), *copy = panel + size;
  std::memset(static_cast<void*>(panel), 0, all * sizeof(A));
  std::vector<int64_t> next;
  for (int64_t unit = begin; unit < end;) {
    const int64_t chunk = unit / job.blocks, block = unit % job.blocks, blocks = std::min(job.blocks - block, end - unit);
    const int64_t first = block * job.block, last = std::min(job.outputs, (block + blocks) * job.block);
    double* out = job.partial + chunk * job.begin[job.outputs];
    const int64_t end_image = std::min(job.images, (chunk + 1) * job.chunk);
    for (int64_t image = chunk * job.chunk; image < end_image; image += p.lanes * job.group) {
      const A* planes = job.direct ? reinterpret_cast<const A*>(job.grad_y + image * job.grad_image) : copy;
      int64_t panels = 0;
      for (int64_t i = image; i < end_image && panels < job.group; i += p.lanes, ++panels) {
        const int64_t images = std::min(p.lanes, job.images - i);
        fill_panel(p, job.x + i * job.x_image, job.x_image, images, panel + panels * d.panel_image);
        if (!job.direct) fill_panel(q, job.grad_y + i * job.grad_image, job.grad_image, images, copy + panels * d.plane_image);
      }
      next.assign(job.begin + first, job.begin + last);
      // Channels that fit into half of L2 at a time; the last time takes what is left.
      for (int64_t limit = job.reach; first < last; limit += job.reach) {
        const bool final = limit >= p.channels * p.channel;
        for (int64_t o = first; o < last; ++o) {
          const int64_t from = next[o - first];
          int64_t to = job.begin[o + 1];
          if (!final)
            for (to = from; to < job.begin[o + 1] && job.taps[to].at < limit;) ++to;
          dots(d, panels, job.taps + from, to - from, panel, planes + o * q.channel, out + from);
          next[o - first] = to;
        }
        if (final) break;
      }
    }
    unit += blocks;
  }
}
