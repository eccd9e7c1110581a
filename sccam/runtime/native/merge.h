#pragma once
#include "common.h"
#include "simd.h"
