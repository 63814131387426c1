// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	pb "github.com/coco-shim/coco/api/agent"
)

// StatsContainer returns a container's use of resources, and the traffic of the pod's network,
// which all containers share.
func (s *service) StatsContainer(_ context.Context, req *pb.StatsContainerRequest) (*pb.StatsContainerResponse, error) {
	c, err := s.container(req.ContainerId)
	if err != nil {
		return nil, err
	}
	stats, err := c.group.Stats()
	if err != nil {
		return nil, fmt.Errorf("statistics of container %s: %w", c.id, err)
	}
	pids, err := c.group.Pids()
	if err != nil {
		return nil, fmt.Errorf("processes of container %s: %w", c.id, err)
	}
	f, err := os.Open("/proc/net/dev")
	if err != nil {
		return nil, fmt.Errorf("network statistics: %w", err)
	}
	defer f.Close()
	return &pb.StatsContainerResponse{CgroupStats: stats, NetworkStats: parseNetDev(f), Pids: pids}, nil
}

// parseNetDev reads /proc/net/dev: after two lines of headings, "name: 8 receive and 8 transmit
// counters" per interface (proc_pid_net(5)). The loopback interface is left out, as runc leaves it.
func parseNetDev(r io.Reader) []*pb.NetworkStats {
	var list []*pb.NetworkStats
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		name, rest, ok := strings.Cut(sc.Text(), ":")
		f := strings.Fields(rest)
		name = strings.TrimSpace(name)
		if !ok || len(f) != 16 || name == "lo" {
			continue
		}
		var n [16]uint64
		bad := false
		for i, w := range f {
			v, err := strconv.ParseUint(w, 10, 64)
			n[i], bad = v, bad || err != nil
		}
		if bad {
			continue
		}
		list = append(list, &pb.NetworkStats{
			Name: name, RxBytes: n[0], RxPackets: n[1], RxErrors: n[2], RxDropped: n[3],
			TxBytes: n[8], TxPackets: n[9], TxErrors: n[10], TxDropped: n[11],
		})
	}
	return list
}

// cpuModes are the columns of the first line of /proc/stat, in clock ticks of 1/100 s (proc_stat(5)).
var cpuModes = []string{"user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal"}

// cpuMetrics returns the guest's CPU time by mode, in Prometheus' text format.
func cpuMetrics(stat string) string {
	const name = "coco_guest_cpu_seconds_total"
	out := "# HELP " + name + " Time of the guest's processors by what they did.\n# TYPE " + name + " counter\n"
	first, _, _ := strings.Cut(stat, "\n")
	f := strings.Fields(first)
	for i, mode := range cpuModes {
		if i+1 >= len(f) {
			break
		}
		ticks, err := strconv.ParseUint(f[i+1], 10, 64)
		if err != nil {
			break
		}
		out += fmt.Sprintf("%s{mode=%q} %d.%02d\n", name, mode, ticks/100, ticks%100)
	}
	return out
}
