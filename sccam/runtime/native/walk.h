// The random walk.
#pragma once
#include "common.h"
#include "simd.h"
