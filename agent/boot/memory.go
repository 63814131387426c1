// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"fmt"
	"math"
	"strconv"

	"golang.org/x/sys/unix"
)

// TrimReserves gives the pod the memory that the kernel reserves for huge pages. When khugepaged starts it raises
// vm.min_free_kbytes for the compaction of huge pages, to 28 MiB in a guest of 600. The kernel's own
// formula, which this restores, gives 3 (mm/page_alloc.c, init_per_zone_wmark_min). Programs can still ask
// for huge pages (madvise).
func TrimReserves() error {
	// Setting this makes khugepaged raise the reserve once more, so it comes first.
	if err := writeFile("/sys/kernel/mm/transparent_hugepage/enabled", "madvise"); err != nil {
		return err
	}
	var si unix.Sysinfo_t
	if err := unix.Sysinfo(&si); err != nil {
		return fmt.Errorf("size of memory: %w", err)
	}
	return writeFile("/proc/sys/vm/min_free_kbytes", strconv.Itoa(minFreeKiB(uint64(si.Totalram)*uint64(si.Unit)>>10)))
}

// minFreeKiB is the kernel's formula for a machine of totalKiB: 4 × √total, within its bounds.
func minFreeKiB(totalKiB uint64) int {
	return min(max(int(4*math.Sqrt(float64(totalKiB))), 128), 262144)
}
