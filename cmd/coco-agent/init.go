// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/agent"
	"github.com/coco-shim/coco/agent/boot"
	"github.com/coco-shim/coco/agent/cgroup"
	"github.com/coco-shim/coco/agent/disk"
	"github.com/coco-shim/coco/agent/gate"
	"github.com/coco-shim/coco/agent/netcfg"
	"github.com/coco-shim/coco/agent/nspace"
	"github.com/coco-shim/coco/agent/parts"
	"github.com/coco-shim/coco/agent/pull"
	"github.com/coco-shim/coco/agent/reap"
	"github.com/coco-shim/coco/agent/rego"
	"github.com/coco-shim/coco/agent/runner"
	"github.com/coco-shim/coco/agent/secrets"
	"github.com/coco-shim/coco/agent/storage"
	"github.com/coco-shim/coco/agent/trust"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/initdata"
	"github.com/coco-shim/coco/internal/version"
	"github.com/coco-shim/coco/policy/decisions"
	"github.com/coco-shim/coco/trust/wire"
)

// Where things are in the guest.
const (
	runtimeState = "/run/crun"
	workDir      = "/run/coco"
	nsDir        = "/run/sandbox-ns"
	secretsDir   = "/run/coco-secrets"
	workloadDir  = "/run/coco-workload"
	imagesDir    = "/run/coco-images"
)

// runtimes are the OCI runtimes that an image may carry, the preferred one first.
var runtimes = []string{contract.CrunFile, contract.RuncFile, "/usr/bin/runc"}

// logLevels are the values of agent.log on the kernel command line. The default is quiet, because
// a serial console takes its time for each byte.
var logLevels = map[string]slog.Level{
	"trace": slog.LevelDebug, "debug": slog.LevelDebug, "info": slog.LevelInfo,
	"warn": slog.LevelWarn, "error": slog.LevelError, "critical": slog.LevelError,
}

// runInit is the life of the guest. It does not return: PID 1 must not.
func runInit() {
	err := life()
	if err != nil {
		say(fmt.Sprintf("coco-agent: fatal: %v; the guest powers off\n", reason(err)))
	}
	err = boot.PowerOff()
	say(fmt.Sprintf("coco-agent: power off: %v\n", reason(failed(phasePowerOff, err))))
	for { // the kernel would panic if PID 1 ended, and the Go runtime ends it if nothing can go on
		_ = unix.Pause()
	}
}

// say writes to the console, if there is one.
func say(msg string) {
	c, err := boot.Console()
	if err != nil {
		_, _ = os.Stderr.WriteString(msg)
		return
	}
	_, _ = c.WriteString(msg)
	_ = c.Close()
}

// life boots, serves until the sandbox is destroyed, and stops.
func life() (err error) {
	if err := boot.EnterRoot(); err != nil {
		return failed(phaseRoot, err)
	}
	if err := boot.MountEarly(); err != nil {
		return failed(phaseMounts, err)
	}
	closed := boot.Closed()
	if closed {
		if err := boot.Quiet(); err != nil {
			return failed(phaseConsole, err)
		}
	}
	if err := boot.Harden(); err != nil {
		return failed(phaseHarden, err)
	}
	log := newLog(closed)
	if err := boot.ExpediteRCU(); err != nil {
		log.Warn("the guest will be slow", "error", err)
	}
	if err := boot.TrimReserves(); err != nil {
		log.Warn("the kernel keeps more memory than it needs", "error", err)
	}
	if err := boot.RaiseLimits(); err != nil {
		log.Warn("containers have lower limits", "error", err)
	}
	log.Debug("mounted", "uptime", uptime())
	mods, err := boot.LoaderFromFile(contract.ModulesFile)
	if err != nil {
		return failed(phaseModules, err)
	}
	if closed {
		mods.CloseAfterBoot()
	}
	if err := loadBoot(mods); err != nil {
		log.Error("load modules", "error", err)
	}
	log.Debug("boot modules loaded", "uptime", uptime())
	found := trusted(mods)
	decides := found.policy
	if decides.Distrust != nil {
		say("coco-agent: " + decides.Distrust.Error() + "; the guest serves health checks only\n")
	}
	log.Debug("policy found", "uptime", uptime())
	g, err := newGuest(mods, log, closed, found)
	if err != nil {
		return failed(phaseServices, err)
	}
	return failed(phaseServing, g.run())
}

// found has the owner's demands that the guest has found in the initdata.
type found struct {
	policy   gate.Policy
	evidence wire.Setup // for coco-trust: the key broker that initdata names, and the workload API
	rego     *string    // text of a policy of Kata's agent; nil: none
	initdata string     // the document; "": none
	login    string     // the key broker's resource with the logins of registries; "": none
}

// trusted finds the pod's policy before the guest serves anything, and what coco-trust is told where the initdata names
// a key broker, or the policy opens the workload API.
func trusted(mods *boot.Loader) (f found) {
	c := trust.Config{Confidential: boot.Confidential("/"), Sys: "/sys", Load: mods.Load}
	c.Bound, c.IsBound = boot.KernelParam(contract.ParamInitdata)
	f.evidence.TEE = trust.TEE(c.Confidential, c.Sys)
	broker := false
	c.Keep = func(d *initdata.Document) {
		_, aa := d.Data[initdata.FileAA]
		settings, cdh := d.Data[initdata.FileCDH]
		f.login = loginResource(settings)
		broker, f.initdata = aa || cdh, string(d.Text)
		if rules, ok := d.Data[initdata.FileRego]; ok {
			f.rego = &rules
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), disk.Timeout)
	defer cancel()
	e, err := trust.Establish(ctx, c)
	if e != nil {
		names, _ := e.Workloads()
		f.evidence.Workload = len(names) > 0
	}
	if broker || f.evidence.Workload {
		f.evidence.Initdata = f.initdata
	}
	f.policy = gate.Policy{Engine: e, Distrust: err, Open: e == nil && err == nil && !c.Confidential}
	if e != nil || f.rego != nil {
		f.policy.Log = &decisions.Log{}
	}
	return f
}

// loadBoot loads what the channel needs. The socket device's modules are loaded where there is one.
func loadBoot(mods *boot.Loader) error {
	const vsock = "vmw_vsock_virtio_transport"
	if !boot.HasVsock() {
		return mods.LoadBoot(func(name string) bool { return strings.Contains(name, "vsock") })
	}
	err := mods.LoadBoot(func(string) bool { return false })
	if mods.Has(vsock) {
		err = errors.Join(err, mods.Load(vsock))
	}
	return err
}

// uptime is the time since the kernel began.
func uptime() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) // cannot fail
	return time.Duration(ts.Nano()).Round(time.Millisecond)
}

// newLog logs to the console. In a closed guest, from which the host must learn nothing, only where the (measured)
// kernel parameters say so.
func newLog(closed bool) *slog.Logger {
	level := slog.LevelWarn
	v, asked := boot.KernelParam(contract.ParamLog)
	if l, known := logLevels[v]; known {
		level = l
	}
	if closed && !asked {
		return slog.New(slog.DiscardHandler)
	}
	var w io.Writer = os.Stderr
	if c, err := boot.Console(); err == nil {
		w = c
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}))
}

// guest is what serves.
type guest struct {
	log        *slog.Logger
	mods       *boot.Loader
	reaper     *reap.Reaper
	oom        *cgroup.OOMWatcher
	mounts     *storage.Manager
	net        *netcfg.Net
	provisions *provisions
	images     *pull.Puller // nil: the policy has the guest pull none
	rego       *rego.Engine // nil: the pod has no such policy
	server     *agent.Server
}

func newGuest(mods *boot.Loader, log *slog.Logger, closed bool, owner found) (*guest, error) {
	g := &guest{log: log, mods: mods, reaper: reap.New(), mounts: storage.New(contract.GuestRoot)}
	disks := parts.New(mods.Load)
	g.provisions = &provisions{secrets: newSecrets(g.reaper, disks, owner, g.log), policy: owner.policy.Engine}
	g.mounts.Load = mods.Load
	g.mounts.HostFiles = func() bool { return !boot.Confidential("/") }
	g.pullImages(disks, owner)
	var err error
	if g.oom, err = cgroup.NewOOMWatcher(); err != nil {
		return nil, err
	}
	if g.net, err = netcfg.New(netcfg.Options{}); err != nil { // brings the loopback up
		return nil, err
	}
	if err := errors.Join(os.MkdirAll(contract.GuestRoot, 0o755), g.openAPI()); err != nil {
		return nil, err
	}
	decides := owner.policy
	if owner.rego != nil {
		g.rego = rego.Start(rego.Config{Policy: *owner.rego, Ready: mods.Wait, Open: disks.Open, Spawn: g.reaper.Spawn})
		decides.Rego = g.rego
	}
	_, portForward := boot.KernelParam(contract.ParamPortForward)
	_, names := boot.KernelParam(contract.ParamResolver)
	g.server, err = agent.NewServer(agent.Config{
		Runner: runner.New(runner.Config{
			Binary: findRuntime(), StateDir: runtimeState, WorkDir: workDir, CgroupRoot: boot.CgroupRoot, Reaper: g.reaper,
		}),
		Storage:    g.mounts,
		Network:    g.net,
		Modules:    mods,
		OOM:        g.oom,
		Secrets:    g.provisions,
		System:     machine{&nspace.Maker{Dir: nsDir, Reaper: g.reaper}, boot.NewClock(standstill())},
		CgroupRoot: boot.CgroupRoot,

		Policy:       decides,
		Confidential: boot.Confidential("/"),
		Ports:        agent.Ports{PortForward: portForward, Resolver: names},

		Version: version.Version,
		Closed:  closed,
		Log:     log,
	})
	return g, err
}

// newSecrets gets secrets for the containers whose policy has some.
func newSecrets(r *reap.Reaper, disks *parts.Parts, owner found, log *slog.Logger) *secrets.Store {
	c := secrets.Config{Setup: owner.evidence, Open: disks.Open, Spawn: r.Spawn, Dir: secretsDir, Log: log}
	if e := owner.policy.Engine; e != nil {
		c.Of, c.Name = e.Secrets, e.Workload
	}
	return secrets.New(c)
}

func findRuntime() string {
	for _, r := range runtimes {
		if _, err := os.Stat(r); err == nil {
			return r
		}
	}
	return runtimes[0] // its absence is reported by the first container
}

// standstill is how long the clock may have stood still, because the guest was saved. Memory of a TEE cannot be saved.
func standstill() time.Duration {
	if _, template := boot.KernelParam(contract.ParamTemplate); template && !boot.Confidential("/") {
		return contract.TemplateAge * time.Second
	}
	return 0
}

// run serves while the rest of the boot goes on beside it. In a template the boot ends first, since the guest is saved
// as soon as it serves.
func (g *guest) run() error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan error, 1)
	if _, template := boot.KernelParam(contract.ParamTemplate); template {
		g.finishBoot()
		g.mods.LoadLazy(agent.NetDriver)
	} else {
		go g.finishBoot()
	}
	g.log.Debug("serving", "uptime", uptime())
	go func() { ended <- g.server.Serve(ctx) }()
	select {
	case err := <-ended:
		return errors.Join(errors.New("no transport is served any more"), err)
	case <-g.server.Stopped():
	}
	g.stop()
	cancel()
	return <-ended
}

// finishBoot does the steps that containers need and the channel does not. Requests that need them wait for
// the modules, which come last.
func (g *guest) finishBoot() {
	for _, step := range []func() error{boot.MountLate, g.mods.LoadRootfs} {
		if err := step(); err != nil {
			g.log.Error("boot", "error", err)
		}
	}
	g.log.Debug("boot is over", "uptime", uptime())
}

// stopTimeout bounds the orderly end.
const stopTimeout = 3 * time.Second

// stop ends calls that are under way, of which the one that destroys the sandbox is answered, and
// unmounts.
func (g *guest) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	if g.images != nil { // a container that waits for its image is given up
		if err := g.images.Close(); err != nil {
			g.log.Warn("images", "error", err)
		}
	}
	if err := g.server.Close(ctx); err != nil {
		g.log.Warn("stop", "error", err)
	}
	if err := g.provisions.Close(); err != nil {
		g.log.Warn("workload API", "error", err)
	}
	if g.rego != nil {
		g.rego.Close()
	}
	g.oom.Close()
	g.net.Close()
	if err := g.mounts.Shutdown(ctx); err != nil {
		g.log.Warn("unmount", "error", err)
	}
}

// machine is the system as the service sees it.
type machine struct {
	ns    *nspace.Maker
	clock *boot.Clock
}

func (m machine) SetClock(sec, usec int64) error { return m.clock.Set(sec, usec) }
func (machine) AddEntropy(data []byte) error     { return boot.AddEntropy(data) }
func (m machine) Namespaces(hostname string, sysctls map[string]string) (map[string]string, error) {
	return m.ns.Make(hostname, sysctls)
}
func (m machine) SharedPIDs() (string, error) { return m.ns.SharedPIDs() }
