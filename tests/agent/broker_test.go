// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"encoding/hex"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/agent/types"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/attestation/kbs/kbstest"
	"github.com/coco-shim/coco/internal/initdata"
	"github.com/coco-shim/coco/internal/testvm"
	plan "github.com/coco-shim/coco/plan/rootfs"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/policy/policytest"
)

// QEMU's user network: the guest's address, and the one at which it finds the host's loopback device.
const (
	userMAC   = "02:00:ca:fe:00:15"
	userGuest = "10.0.2.15"
	userHost  = "10.0.2.2"
)

// brokerDeadline is how long the guest waits for its broker.
const brokerDeadline = 8 * time.Second

// fetching is a guest with a container "app" whose secret comes from a broker of the test.
type fetching struct {
	*vm
	broker *kbstest.Broker
	layer  plan.Attached
	made   int // containers
}

// fetchPolicy is initdata with the container's policy and the broker.
func fetchPolicy(t *testing.T, layer plan.Attached, b *kbstest.Broker) *initdata.Document {
	t.Helper()
	c := policytest.Container("app", []string{layer.Hex()}, nil, specFor("app", "sh"), false)
	c.Restart = policy.Always
	c.Allow = policy.Capabilities{Logs: true, Stdin: true}
	c.Secrets = []policy.Secret{
		{Resource: "kbs:///r/t/a", File: "/run/secret"}, {Resource: "kbs:///r/t/b", File: "/run/db/b", Renew: "10s"},
	}
	c.Workload.Calls = []string{policy.CallRenew}
	text, err := policy.Encode(&policy.Policy{
		APIVersion: policy.APIVersion, Containers: []policy.Container{c},
		Pod: policy.Pod{
			Hostname: policy.Value{Is: new("pod-host")},
			Network:  policy.Network{Interfaces: []policy.Interface{{Name: "eth0"}}, Routes: true},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	d, err := initdata.New("sha256", map[string]string{
		policy.FileName: string(text),
		initdata.FileAA: fmt.Sprintf("insecure = true\n[token_configs.kbs]\nurl = %q\ndeadline = %q\ncert = '''\n%s'''\n",
			b.URL(), brokerDeadline, b.CertPEM()),
	})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// bootFetching boots a guest whose clock shows another year.
func bootFetching(t *testing.T, initrd string, years int) *fetching {
	t.Helper()
	part, err := os.ReadFile(filepath.Join(testvm.GuestDir(), contract.PartTrust+contract.PartSuffix))
	if err != nil {
		t.Fatal(err)
	}
	g := &fetching{broker: kbstest.Start(t, userHost, map[string]string{"r/t/a": "first", "r/t/b": "one"})}
	d := newDisks(t)
	d.n = 1
	g.layer = d.add(askingBottom(t), nil)
	d.drive(part, "scsi-hd,scsi-id=1,lun=0,serial="+contract.PartTrust)
	doc := fetchPolicy(t, g.layer, g.broker)
	d.n = 0
	d.drive(doc.Disk(), "scsi-hd,scsi-id=0,lun=0,serial="+initdata.DiskID)
	params := fmt.Sprintf("%s %s=%s:%s", contract.Cmdline, contract.ParamInitdata, doc.Algorithm,
		hex.EncodeToString(doc.Digest()))
	clock := time.Now().UTC().AddDate(years, 0, 0).Format("2006-01-02T15:04:05")
	g.vm = boot(t, initrd, append(d.args, "-append", params, "-rtc", "base="+clock, "-netdev", "user,id=n0",
		"-device", "virtio-net-pci,netdev=n0,mac="+userMAC)...)
	ctx := within(t, 30*time.Second)
	if _, err := g.agent.UpdateInterface(ctx, &pb.UpdateInterfaceRequest{Interface: &types.Interface{
		Device: "eth0", Name: "eth0", HwAddr: userMAC, Mtu: 1500,
		IPAddresses: []*types.IPAddress{{Family: types.IPFamily_v4, Address: userGuest, Mask: "24"}},
	}}); err != nil {
		t.Fatal(err)
	}
	if _, err := g.agent.CreateSandbox(ctx, &pb.CreateSandboxRequest{
		Hostname: "pod-host", SandboxId: "pod",
	}); err != nil {
		t.Fatal(err)
	}
	return g
}

// create creates a container, and tells how long that took.
func (g *fetching) create(t *testing.T) (id string, s *shell, took time.Duration, err error) {
	t.Helper()
	g.made++
	id = "app" + strconv.Itoa(g.made)
	storages, err := plan.Storages(id, []plan.Attached{g.layer}, plan.Upper{MiB: 16})
	if err != nil {
		t.Fatal(err)
	}
	s = &shell{streams: g.open(t)}
	began := time.Now()
	_, err = g.agent.CreateContainer(within(t, 60*time.Second), &pb.CreateContainerRequest{
		ContainerId: id, ExecId: id, OCI: specFor(id, "sh"), Storages: storages,
		StdinPort: s.ports[0], StdoutPort: s.ports[1], StderrPort: s.ports[2],
	})
	return id, s, time.Since(began), err
}

// gets creates a container that must get its secret, which is asked for with the year, and removes it.
func (g *fetching) gets(t *testing.T, when, secret string, years int) {
	t.Helper()
	id, s, _, err := g.create(t)
	if err != nil {
		t.Errorf("%s: %v", when, err)
		return
	}
	g.start(t, id)
	want := secret + " " + strconv.Itoa(time.Now().UTC().AddDate(years, 0, 0).Year())
	if got := s.ask(t, `echo "$(cat /run/secret) $(busybox date -u +%Y)"`); got != want {
		t.Errorf("%s: the container sees %q, want %q", when, got, want)
	}
	g.remove(t, id)
}

// TestPodsOfBrokersThatMisbehave: in a guest whose clock is ten years off, a container starts with its secret, also if
// the broker comes back before the deadline. Else it is not created, for the broker's reason and by the deadline.
func TestPodsOfBrokersThatMisbehave(t *testing.T) {
	testvm.Need(t, testvm.Root, testvm.QEMU, testvm.GuestImage, testvm.Busybox)
	initrd := buildInitrd(t)
	for _, years := range []int{-10, 10} {
		t.Run(fmt.Sprintf("clock %+d years", years), func(t *testing.T) {
			g := bootFetching(t, initrd, years)
			g.broker.Behave(kbstest.Busy(1, "1"))
			g.gets(t, "busy for a second", "first", years)
			if years < 0 {
				return // the faults do not depend on the clock
			}
			g.testMoods(t)
			g.broker.Behave(kbstest.Gone(2))
			g.broker.Set("r/t/a", "second")
			g.gets(t, "gone, and back", "second", years)
			g.testRenewals(t)
			g.broker.ChangeCertificate()
			g.fails(t, "another certificate", brokerDeadline, "[untrusted]", "certificate is not the one")
		})
	}
}

// testMoods has the broker misbehave until the deadline.
func (g *fetching) testMoods(t *testing.T) {
	t.Helper()
	for _, tc := range []struct {
		name   string
		mood   kbstest.Mood
		before time.Duration
		says   []string
	}{
		{"garbage", kbstest.Garbage(http.StatusOK), brokerDeadline, []string{"[untrusted]"}},
		{"no TLS", kbstest.NoTLS(), brokerDeadline, []string{"[untrusted]", "TLS"}},
		{"empty", kbstest.Empty(), brokerDeadline, []string{"[untrusted]", "the secret is empty"}},
		{"busy for an hour", kbstest.Busy(1000, "3600"), brokerDeadline, []string{"[unavailable]", "after the deadline"}},
		{"slow", kbstest.Trickle(), 2 * brokerDeadline, []string{"[unavailable]", "deadline"}},
	} {
		g.broker.Behave(tc.mood)
		g.fails(t, tc.name, tc.before, tc.says...)
	}
	g.broker.Behave(kbstest.Mood{})
}

// testRenewals changes a secret. The container sees the new one when it has asked for it, and after the interval; while
// the broker answers garbage it keeps the last one.
func (g *fetching) testRenewals(t *testing.T) {
	t.Helper()
	id, s, _, err := g.create(t)
	if err != nil {
		t.Fatal(err)
	}
	g.start(t, id)
	const renew = "ask unix " + contract.WorkloadSocket + " /coco/renew POST; cat /run/db/b; echo"
	expect := func(when, answer, secret string) {
		if got, line := s.ask(t, renew), s.ask(t, "true"); !strings.HasPrefix(got, answer) || line != secret {
			t.Errorf("%s: %q, and the file has %q; want %q and %q", when, got, line, answer, secret)
		}
	}
	g.broker.Set("r/t/b", "two")
	expect("on request", `200 {"changed":1}`, "two")
	g.broker.Behave(kbstest.Garbage(http.StatusOK))
	expect("garbage", "500 secret kbs:///r/t/b: [untrusted]", "two")
	g.broker.Behave(kbstest.Mood{})
	g.broker.Set("r/t/b", "three")
	wait := `i=0; while [ "$(cat /run/db/b)" = two ] && [ $i -lt 25 ]; do busybox sleep 1; i=$((i+1)); done; ` +
		`echo "$(cat /run/db/b) $(ls -A /run/db) $(stat -c %a /run/db/b)"`
	if got := s.ask(t, wait); got != "three b 400" {
		t.Errorf("after the interval the container sees %q", got)
	}
	g.remove(t, id)
}

// fails creates a container that must not get its secret, for a reason and in time.
func (g *fetching) fails(t *testing.T, when string, before time.Duration, words ...string) {
	t.Helper()
	_, _, took, err := g.create(t)
	for _, word := range append(words, "secret kbs:///r/t/a: ") {
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%s: %v does not say %q", when, err, word)
		}
	}
	if took > before {
		t.Errorf("%s: it took %v, at most %v are in order", when, took, before)
	}
	t.Logf("%s, after %v: %v", when, took.Round(10*time.Millisecond), err)
}
