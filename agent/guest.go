// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"runtime/metrics"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/coco-shim/coco/agent/beneath"
	"github.com/coco-shim/coco/agent/guard"
	"github.com/coco-shim/coco/agent/storage"
	"github.com/coco-shim/coco/agent/sysctl"
	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/agent/types"
	"github.com/coco-shim/coco/api/contract"
)

// GetGuestDetails returns the features of this guest.
func (s *service) GetGuestDetails(_ context.Context, req *pb.GuestDetailsRequest) (*pb.GuestDetailsResponse, error) {
	resp := &pb.GuestDetailsResponse{AgentDetails: &pb.AgentDetails{
		Version: s.Config.Version, InitDaemon: os.Getpid() == 1, SupportsSeccomp: true,
		DeviceHandlers: storage.DeviceTypes(), StorageHandlers: storage.Drivers(),
		ExtraFeatures: []string{
			"seccomp", contract.FeatureStreams, contract.FeatureRemove, contract.FeatureRawPath,
			contract.FeatureSignalAll, contract.FeatureRules, contract.FeatureOneOutput,
		},
	}}
	if s.Policy.Files() == nil {
		resp.AgentDetails.ExtraFeatures = append(resp.AgentDetails.ExtraFeatures, contract.FeatureRewrite)
	}
	if req.MemBlockSize {
		if b, err := os.ReadFile("/sys/devices/system/memory/block_size_bytes"); err == nil {
			resp.MemBlockSizeBytes, _ = strconv.ParseUint(strings.TrimSpace(string(b)), 16, 64)
		}
	}
	return resp, nil
}

// SetGuestDateTime sets the wall clock, in a TEE only until there is a sandbox.
func (s *service) SetGuestDateTime(_ context.Context, req *pb.SetGuestDateTimeRequest) (*emptypb.Empty, error) {
	s.mu.Lock()
	started := s.sandbox.state != sandboxNone
	s.mu.Unlock()
	if s.Confidential && started {
		return nil, fmt.Errorf("set clock: the host does not move the clock of a guest in a TEE once it has a sandbox: %w",
			errdefs.ErrPermissionDenied)
	}
	return &emptypb.Empty{}, s.System.SetClock(req.Sec, req.Usec)
}

// ReseedRandomDev feeds the random number generator.
func (s *service) ReseedRandomDev(_ context.Context, req *pb.ReseedRandomDevRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, s.System.AddEntropy(req.Data)
}

// CopyFile writes a piece of a file, a directory or a link below the shared directory; or in the root file system of
// the only container, where the host's engine has put one.
func (s *service) CopyFile(_ context.Context, req *pb.CopyFileRequest) (*emptypb.Empty, error) {
	if root, ok := s.rootFor(req); ok {
		if _, err := s.upperDir(true); err != nil {
			return nil, err
		}
		return &emptypb.Empty{}, s.root.Copy(root, req)
	}
	if s.waits(req) {
		return &emptypb.Empty{}, s.copy.Rewrite(req)
	}
	return &emptypb.Empty{}, s.copy.Copy(req)
}

// OnlineCPUMem brings processors and memory blocks into use that the VMM has added.
func (s *service) OnlineCPUMem(_ context.Context, req *pb.OnlineCPUMemRequest) (*emptypb.Empty, error) {
	if err := sysctl.Switch("/sys/devices/system/cpu/cpu[0-9]*/online", "0", "1"); err != nil {
		return nil, err
	}
	if !req.CpuOnly {
		if err := sysctl.Switch("/sys/devices/system/memory/memory*/state", "offline", "online"); err != nil {
			return nil, err
		}
	}
	if n := runtime.NumCPU(); req.Wait && req.NbCpus > uint32(min(n, math.MaxInt32)) { //nolint:gosec // bounded
		return nil, fmt.Errorf("%d processors are asked for, %d are there: %w", req.NbCpus, n, errdefs.ErrFailedPrecondition)
	}
	return &emptypb.Empty{}, nil
}

// UpdateInterface configures a network interface.
func (s *service) UpdateInterface(ctx context.Context, req *pb.UpdateInterfaceRequest) (*types.Interface, error) {
	if req.Interface == nil {
		return nil, fmt.Errorf("no interface in the request: %w", errdefs.ErrInvalidArgument)
	}
	// The driver comes with the first interface that is asked for: a pod without a network shows none,
	// although its VM has one to spare. An image may have it built in.
	if err := s.Modules.Load(NetDriver); err != nil && !errdefs.IsNotFound(err) {
		return nil, err
	}
	return s.Network.UpdateInterface(ctx, req.Interface)
}

// NetDriver is the module of virtio network devices. It must not be loaded before the guest gets a network.
const NetDriver = "virtio_net"

// UpdateRoutes replaces the routes.
func (s *service) UpdateRoutes(ctx context.Context, req *pb.UpdateRoutesRequest) (*pb.Routes, error) {
	if req.Routes == nil {
		return nil, fmt.Errorf("no routes in the request: %w", errdefs.ErrInvalidArgument)
	}
	return s.Network.UpdateRoutes(ctx, req.Routes)
}

// ListInterfaces lists the guest's interfaces.
func (s *service) ListInterfaces(ctx context.Context, _ *pb.ListInterfacesRequest) (*pb.Interfaces, error) {
	return s.Network.ListInterfaces(ctx)
}

// ListRoutes lists the guest's routes.
func (s *service) ListRoutes(ctx context.Context, _ *pb.ListRoutesRequest) (*pb.Routes, error) {
	return s.Network.ListRoutes(ctx)
}

// AddARPNeighbors adds entries of the neighbour table.
func (s *service) AddARPNeighbors(ctx context.Context, req *pb.AddARPNeighborsRequest) (*emptypb.Empty, error) {
	if req.Neighbors == nil {
		return nil, fmt.Errorf("no neighbours in the request: %w", errdefs.ErrInvalidArgument)
	}
	return &emptypb.Empty{}, s.Network.AddNeighbors(ctx, req.Neighbors)
}

// UpdateEphemeralMounts changes mounts that live in memory, or adds them to the sandbox.
func (s *service) UpdateEphemeralMounts(ctx context.Context, req *pb.UpdateEphemeralMountsRequest) (*emptypb.Empty,
	error,
) {
	if _, err := s.ready(&pb.CreateContainerRequest{}); err != nil {
		return nil, err
	}
	if err := guard.Storages(req.Storages, s.RunDir+"/"); err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, s.Storage.Add(ctx, sandboxStorage, req.Storages)
}

// GetVolumeStats tells how full a volume is.
func (s *service) GetVolumeStats(_ context.Context, req *pb.VolumeStatsRequest) (*pb.VolumeStatsResponse, error) {
	p, err := s.dir().Open(req.VolumeGuestPath)
	if err != nil {
		return nil, fmt.Errorf("statistics of volume: %w", err)
	}
	defer p.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(p.Fd()), &st); err != nil {
		return nil, fmt.Errorf("statistics of volume %s: %w", p.Name(), err)
	}
	size := uint64(max(st.Bsize, 0))
	return &pb.VolumeStatsResponse{
		Usage: []*pb.VolumeUsage{
			{
				Unit: pb.VolumeUsage_BYTES, Total: st.Blocks * size, Available: st.Bavail * size,
				Used: (st.Blocks - st.Bfree) * size,
			},
			{Unit: pb.VolumeUsage_INODES, Total: st.Files, Available: st.Ffree, Used: st.Files - st.Ffree},
		},
		VolumeCondition: &pb.VolumeCondition{},
	}, nil
}

// maxTermination is as much of a termination log as Kubernetes ever asks for, and some.
const maxTermination = 64 << 10

// GetDiagnosticData returns a container's termination log, or the log of the policy's decisions.
func (s *service) GetDiagnosticData(_ context.Context, req *pb.GetDiagnosticDataRequest) (*pb.GetDiagnosticDataResponse,
	error,
) {
	switch req.LogType {
	case contract.TerminationLog:
	case contract.DecisionLog:
		if s.Policy.Log == nil {
			return nil, fmt.Errorf("the guest has no policy, so nothing was decided: %w", errdefs.ErrNotFound)
		}
		return &pb.GetDiagnosticDataResponse{Data: s.Policy.Log.Text()}, nil
	default:
		return nil, no("diagnostic data " + strconv.Quote(req.LogType))
	}
	c, err := s.container(req.ContainerId)
	if err != nil {
		return nil, err
	}
	if c.termination == nil {
		return nil, fmt.Errorf("container %s has no termination log: %w", c.id, errdefs.ErrNotFound)
	}
	b, err := tail(c.termination, maxTermination)
	if err != nil {
		return nil, fmt.Errorf("termination log of container %s: %w", c.id, err)
	}
	return &pb.GetDiagnosticDataResponse{Data: strings.ToValidUTF8(string(b), "\uFFFD")}, nil
}

// tail reads the end of a regular file, which a descriptor stands for.
func tail(log *os.File, limit int64) ([]byte, error) {
	f, err := beneath.Reopen(log)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.NewSectionReader(f, max(st.Size()-limit, 0), limit))
}

// GetMetrics tells in Prometheus' text format how the agent and the guest are.
func (s *service) GetMetrics(context.Context, *pb.GetMetricsRequest) (*pb.Metrics, error) {
	var out bytes.Buffer
	gauge := func(name, help string, v uint64) {
		fmt.Fprintf(&out, "# HELP %s %s\n# TYPE %s gauge\n%s %d\n", name, help, name, name, v)
	}
	samples := []metrics.Sample{{Name: "/sched/goroutines:goroutines"}, {Name: "/memory/classes/total:bytes"}}
	metrics.Read(samples)
	gauge("coco_agent_goroutines", "Goroutines of the agent.", samples[0].Value.Uint64())
	gauge("coco_agent_go_memory_bytes", "Memory mapped by the Go runtime of the agent.", samples[1].Value.Uint64())
	status, serr := keysKiB("/proc/self/status")
	gauge("coco_agent_resident_bytes", "Resident set of the agent.", status["VmRSS"])
	gauge("coco_agent_anonymous_bytes", "Memory of the agent that is not its binary.", status["RssAnon"])
	mem, merr := keysKiB("/proc/meminfo")
	gauge("coco_guest_memory_total_bytes", "Memory of the guest.", mem["MemTotal"])
	gauge("coco_guest_memory_available_bytes", "Memory that new processes could have.", mem["MemAvailable"])
	cpu, cerr := os.ReadFile("/proc/stat")
	out.WriteString(cpuMetrics(string(cpu)))
	s.mu.Lock()
	n := len(s.containers)
	s.mu.Unlock()
	gauge("coco_agent_containers", "Containers that exist.", uint64(n))
	if err := errors.Join(serr, merr, cerr); err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	return &pb.Metrics{Metrics: out.String()}, nil
}

// keysKiB reads a file of "Key:  n kB" lines, in bytes.
func keysKiB(name string) (map[string]uint64, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	m := map[string]uint64{}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) == 3 && f[2] == "kB" {
			n, _ := strconv.ParseUint(f[1], 10, 64)
			m[strings.TrimSuffix(f[0], ":")] = n << 10
		}
	}
	return m, nil
}
