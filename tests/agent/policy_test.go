// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/initdata"
	"github.com/coco-shim/coco/internal/testvm"
	plan "github.com/coco-shim/coco/plan/rootfs"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/policy/policytest"
)

// pinned is a guest whose policy allows two containers on one layer: "main", a shell that the host may feed and read,
// and "quiet", which sleeps, and in which one command may be run.
type pinned struct {
	*vm
	layer, foreign plan.Attached // the layer of the policy, and one that it does not have
}

// allowedCommand is what may be run in the container "quiet".
var allowedCommand = []string{"echo", "allowed"}

// specFor is the specification of a container of the policy.
func specFor(id string, args ...string) *pb.Spec {
	sp := spec(args...)
	sp.Root.Path = contract.Rootfs(id)
	sp.Linux.CgroupsPath = contract.CgroupBase + id
	sp.Linux.Namespaces = []*pb.LinuxNamespace{{Type: "mount"}, {Type: "ipc"}, {Type: "uts"}}
	return sp
}

// commands are those of the containers.
var commands = map[string][]string{"main": {"sh"}, "quiet": {"busybox", "sleep", "1000"}}

func pinnedPolicy(t *testing.T, layer plan.Attached) *initdata.Document {
	t.Helper()
	p := &policy.Policy{
		APIVersion: policy.APIVersion,
		Pod:        policy.Pod{Hostname: policy.Value{Is: new("pod-host")}, PortForward: []uint16{8080}},
	}
	for _, name := range []string{"main", "quiet"} {
		c := policytest.Container(name, []string{layer.Hex()}, nil, specFor(name, slices.Clone(commands[name])...), false)
		c.Restart = policy.Never
		c.Allow = policy.Capabilities{Logs: name == "main", Stdin: name == "main"}
		if name == "quiet" {
			c.Allow.Exec = policy.Exec{Commands: []policy.Command{{Args: allowedCommand}}}
		}
		p.Containers = append(p.Containers, c)
	}
	text, err := policy.Encode(p)
	if err != nil {
		t.Fatal(err)
	}
	d, err := initdata.New("sha256", map[string]string{policy.FileName: string(text)})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// bootPinned boots a guest with a policy. Its disk is the first of the bus, as the shim has it.
func bootPinned(t *testing.T) *pinned {
	t.Helper()
	testvm.Need(t, testvm.Root, testvm.QEMU, testvm.GuestImage, testvm.Busybox)
	d := newDisks(t)
	d.n = 1
	base := bottom(t)
	p := &pinned{layer: d.add(base, nil), foreign: d.add(other(t, base, "foreign"), nil)}
	doc := pinnedPolicy(t, p.layer)
	d.n = 0
	d.drive(doc.Disk(), "scsi-hd,scsi-id=0,lun=0,serial="+initdata.DiskID)
	params := fmt.Sprintf("%s %s=%s:%s %s=1", contract.Cmdline, contract.ParamInitdata, doc.Algorithm,
		hex.EncodeToString(doc.Digest()), contract.ParamPortForward)
	p.vm = boot(t, buildInitrd(t), append(d.args, "-append", params)...)
	return p
}

// request is what the shim sends for a container of the policy, without streams.
func (p *pinned) request(t *testing.T, name, id string) *pb.CreateContainerRequest {
	t.Helper()
	storages, err := plan.Storages(id, []plan.Attached{p.layer}, plan.Upper{MiB: 16})
	if err != nil {
		t.Fatal(err)
	}
	return &pb.CreateContainerRequest{
		ContainerId: id, ExecId: id, OCI: specFor(id, slices.Clone(commands[name])...), Storages: storages,
	}
}

// denied checks that an error is a denial with a code and a field.
func denied(t *testing.T, what string, err error, code, field string) {
	t.Helper()
	if !is(err, errdefs.IsPermissionDenied) || !strings.Contains(err.Error(), "denied ["+code+"]") ||
		!strings.Contains(err.Error(), field) || len(err.Error()) > 1100 {
		t.Errorf("%s: %v, want a denial [%s] of %s", what, err, code, field)
	}
}

// TestAHostileHostMeetsAPolicy attacks a real guest that has a policy, as a host that speaks the protocol. Subtests are
// named by the properties that docs/policy.md lists. All attacks are denied; what the policy allows works before and
// after them, and the guest's memory is as it was. The biggest attack comes twice: what the first one leaves in the Go
// runtime's tables must not become more.
func TestAHostileHostMeetsAPolicy(t *testing.T) {
	p := bootPinned(t)
	booted := time.Now()
	t.Run("A1 before the sandbox", p.testEarly)
	p.sandbox(t)
	t.Run("A2 A3 calls that no policy allows", p.testNever)
	main := p.begin(t, "main", "m1")
	p.begin(t, "quiet", "q1")
	fresh := main.rested(t, booted)
	t.Run("A5 too much of all, at first", p.testFloods)
	before := main.settles(t, fresh, firstSlack)
	t.Run("B1 B2 other images", p.testImages)
	t.Run("C1 C2 other processes", p.testProcesses)
	t.Run("C3 other mounts", p.testMounts)
	t.Run("C3 D1 other storages", p.testStorages)
	t.Run("C4 ids", p.testIDs)
	t.Run("A3 closed capabilities", p.testClosed)
	t.Run("C5 copies", p.testCopies)
	t.Run("F4 ports", p.testPorts)
	t.Run("A5 too much of all", p.testFloods)
	t.Run("what is allowed", func(t *testing.T) {
		x, err := p.exec(t, "q1", "x1", allowedCommand...)
		if err != nil {
			t.Fatal(err)
		}
		if out, err := io.ReadAll(x.out); err != nil || string(out) != "allowed\n" || p.wait(t, "q1", "x1") != 0 {
			t.Errorf("the allowed command wrote %q, %v", out, err)
		}
		main.settles(t, before, slack)
	})
	t.Run("C4 the past", func(t *testing.T) { p.testPast(t, main) })
}

// call sends a request of any method.
func (p *pinned) call(t *testing.T, method string, req proto.Message) error {
	t.Helper()
	return p.client.Call(within(t, 30*time.Second), "grpc.AgentService", method, req, &emptypb.Empty{})
}

// raw is a message that has these bytes in its wire form.
func raw(b []byte) proto.Message {
	m := &emptypb.Empty{}
	m.ProtoReflect().SetUnknown(b)
	return m
}

// halfOpen is how many streams a hostile host opens and says nothing on; make hostile opens 10,000.
func halfOpen() int {
	if n, err := strconv.Atoi(os.Getenv("COCO_HALF_OPEN")); err == nil {
		return n
	}
	return 1000
}

// halfOpen opens streams, says nothing on them and closes them.
func (p *pinned) halfOpen(t *testing.T) {
	t.Helper()
	var open []net.Conn
	for range halfOpen() {
		c, err := p.dialer.Dial(within(t, 60*time.Second), contract.PortStreams)
		if err != nil {
			break // the guest takes no more
		}
		open = append(open, c)
	}
	t.Logf("%d half-open streams", len(open))
	if _, err := p.health.Check(within(t, 30*time.Second), &pb.CheckRequest{}); err != nil {
		t.Errorf("health among half-open streams: %v", err)
	}
	for _, c := range open {
		_ = c.Close()
	}
}

// testFloods sends what is too long, too deep and too often. The big requests come last: the guest gives memory back
// when they are over.
func (p *pinned) testFloods(t *testing.T) {
	p.halfOpen(t)
	var deep []byte
	for range 20_000 { // groups within groups
		deep = protowire.AppendTag(deep, 500, protowire.StartGroupType)
	}
	for range 20_000 {
		deep = protowire.AppendTag(deep, 500, protowire.EndGroupType)
	}
	for what, payload := range map[string][]byte{
		"nested groups": deep, "no message": []byte("\xff\xff\xff\xff"),
		"a long unknown field": field(900, 3<<20), "a long id": field(1, 3<<20),
	} {
		for range 4 {
			err := p.call(t, "CreateContainer", raw(payload))
			if err == nil || len(err.Error()) > 2048 {
				t.Errorf("%s: an error of %d bytes: %.200v", what, len(fmt.Sprint(err)), err)
			}
		}
	}
	p.oversized(t)
	if _, err := p.health.Check(within(t, 30*time.Second), &pb.CheckRequest{}); err != nil {
		t.Fatalf("health after the floods: %v", err)
	}
}

// field is a field of zeros.
func field(n protowire.Number, size int) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, n, protowire.BytesType), make([]byte, size))
}

// oversized sends the head of a frame that is longer than ttrpc's limit of 4 MiB, and some of it, on connections of
// their own.
func (p *pinned) oversized(t *testing.T) {
	t.Helper()
	for _, size := range []uint32{4<<20 + 1, 1<<32 - 1} {
		c, err := p.dialer.Dial(within(t, 20*time.Second), contract.PortAgent)
		if err != nil {
			t.Fatal(err)
		}
		head := []byte{byte(size >> 24), byte(size >> 16), byte(size >> 8), byte(size), 0, 0, 0, 1, 1, 0}
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		_, _ = c.Write(append(head, make([]byte, 1<<16)...)) // the guest may close it before
		_ = c.Close()
	}
}

// shell is the container "main": its shell answers what it is told.
type shell struct {
	streams
	left string // of the output
}

// begin creates and starts a container of the policy.
func (p *pinned) begin(t *testing.T, name, id string) *shell {
	t.Helper()
	r := p.request(t, name, id)
	s := &shell{streams: p.open(t)}
	r.StdoutPort, r.StderrPort = s.ports[1], s.ports[2]
	if name == "main" {
		r.StdinPort = s.ports[0]
	}
	if _, err := p.agent.CreateContainer(within(t, 60*time.Second), r); err != nil {
		t.Fatalf("CreateContainer %s: %v", name, err)
	}
	p.start(t, id)
	return s
}

// ask has the shell run a command, and returns the first line of its answer.
func (s *shell) ask(t *testing.T, command string) string {
	t.Helper()
	_ = s.out.SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.WriteString(s.in, command+"\n"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 256)
	for !strings.Contains(s.left, "\n") {
		n, err := s.out.Read(b)
		if err != nil {
			t.Fatalf("%s: %v", command, err)
		}
		s.left += string(b[:n])
	}
	line, rest, _ := strings.Cut(s.left, "\n")
	s.left = rest
	return line
}

// used is the guest's memory in KiB that programs and the kernel hold. It is not told by what is free: pages that the
// guest is giving back to the host are neither free nor used, up to 12 MiB in the seconds after a boot.
func (s *shell) used(t *testing.T) int {
	t.Helper()
	line := s.ask(t, `n=0; while read k v u; do case $k in
AnonPages: | Shmem: | SUnreclaim: | KernelStack: | PageTables: | VmallocUsed: | Percpu:) n=$((n + v)) ;;
esac; done </proc/meminfo; echo $n`)
	n, err := strconv.Atoi(line)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// bootRest is how long after its first answer the agent has returned what its boot needed (cmd/coco-agent: bootTakes).
const bootRest = 8 * time.Second

// rested is the guest's memory in use after its boot.
func (s *shell) rested(t *testing.T, booted time.Time) int {
	t.Helper()
	for time.Since(booted) < bootRest {
		time.Sleep(time.Second) // the agent says nothing when it is done
	}
	return s.used(t)
}

// By how many KiB the guest's memory in use may differ after all attacks, and after the first one. Go's runtime keeps
// the descriptions of a thousand goroutines and the tables of a heap of 20 MiB for good: 1.5 to 2.4 MiB.
const (
	slack      = 2 << 10
	firstSlack = 3 << 10
)

// settles waits until the guest's memory is what it was but for so many KiB, and returns it.
func (s *shell) settles(t *testing.T, before, slack int) int {
	t.Helper()
	var now int
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(time.Second) {
		now = s.used(t)
		if now-before <= slack {
			t.Logf("the guest used %d KiB before and %d after", before, now)
			return now
		}
	}
	t.Errorf("the guest used %d KiB before and uses %d now, %d more; %s", before, now, now-before, s.ask(t,
		`while read k v u; do case $k in *Active* | *nactive*) ;; *) echo -n "$k $v, " ;; esac; done </proc/meminfo; echo`))
	return now
}
