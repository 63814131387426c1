// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import "testing"

func TestCPUMetrics(t *testing.T) {
	const want = `# HELP coco_guest_cpu_seconds_total Time of the guest's processors by what they did.
# TYPE coco_guest_cpu_seconds_total counter
coco_guest_cpu_seconds_total{mode="user"} 1.05
coco_guest_cpu_seconds_total{mode="nice"} 0.00
coco_guest_cpu_seconds_total{mode="system"} 23.00
`
	if got := cpuMetrics("cpu  105 0 2300 x 7\ncpu0 1 2 3\n"); got != want {
		t.Errorf("cpuMetrics = %q, want %q", got, want)
	}
}
