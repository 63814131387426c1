// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package main

// A VM that waits for its pod belongs to a process that becomes the pod's shim. The shim of a pod starts such a process
// when runtime.standby is not 0 and too few wait for pods like its own. The process boots its VM, says which pods
// it is for, and waits. `start` takes one whose description is that of the new pod.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/configs"
	"github.com/coco-shim/coco/shim"
	"github.com/coco-shim/coco/shim/bootstrap"
	"github.com/coco-shim/coco/shim/bundle"
	"github.com/coco-shim/coco/shim/task"
	"github.com/coco-shim/coco/virtcontainers"
	"github.com/coco-shim/coco/virtcontainers/boot"
	"github.com/coco-shim/coco/virtcontainers/host"
	"github.com/coco-shim/coco/virtcontainers/standby"
)

// standbyArg is the argument that makes the program call standbyMain.
const standbyArg = "standby"

const (
	maxOrder      = 8 << 20
	maxStandby    = 16                                 // of all descriptions on a node
	standbyAge    = contract.TemplateAge * time.Second // as for templates
	standbyCheck  = 5 * time.Second                    // between two looks at memory, age and description
	lockTimeout   = 10 * time.Minute                   // for the boots of others
	describeTime  = 10 * time.Second
	standbyPrefix = "standby-" // of the VM's name
)

// order says what pods a process is to wait for.
type order struct {
	Options task.Options
	Spec    *specs.Spec // the annotations and resources of one of them
}

func (o order) request() task.PodRequest {
	return task.PodRequest{ID: "standby", Options: o.Options, Spec: o.Spec}
}

// backend is the shim's, of a process with a VM that waits or without one. late gets the pod's log.
func backend(w *boot.Warm, late *lateLog) shim.Backend {
	return shim.Backend{
		MakePod: func(env shim.Env) func(context.Context, task.PodRequest) (task.Pod, error) {
			late.set(env.Log)
			return makePod(env, w)
		},
		Warm: findWarm, Cleanup: virtcontainers.Cleanup,
	}
}

// newOutside is nil where no process is to wait.
func newOutside(c configs.Config) *host.Outside {
	if c.Runtime.Standby == 0 {
		return nil
	}
	o := host.NewOutside()
	return &o
}

// findWarm hands a pod to a process that waits for pods like it. It is a bootstrap.Warm.
func findWarm(p bootstrap.Params, dir bundle.Dir, text []byte, files ...*os.File) (none bundle.Process, err error) {
	r, alone, err := requestOf(p, dir)
	if err != nil {
		return none, nil //nolint:nilerr // the serving process says so
	}
	cfg, _, _, err := config(r)
	if err != nil || cfg.Runtime.Standby == 0 {
		return none, nil //nolint:nilerr // likewise
	}
	if !dir.HasSpec() {
		return none, fmt.Errorf("the sandbox API tells later what pod it is: %w", errdefs.ErrNotImplemented)
	}
	if alone {
		r.First = &virtcontainers.ContainerRequest{}
	}
	d, _, err := describe(r, slog.New(slog.DiscardHandler))
	if err == nil {
		err = boot.Unfit(d.Options)
	}
	if err != nil {
		return none, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), describeTime)
	defer cancel()
	key, err := boot.Kind(ctx, d.Options)
	if err != nil {
		return none, err
	}
	id, err := standby.Of(cfg.Runtime.StateDir).Take(key, text, files...)
	return bundle.Process{PID: id.PID, Start: id.StartTime}, err
}

// requestOf is what Create will ask for, as far as `start` can know it.
func requestOf(p bootstrap.Params, dir bundle.Dir) (r task.PodRequest, alone bool, err error) {
	r = task.PodRequest{ID: p.ID, Bundle: string(dir), Spec: &specs.Spec{}}
	if len(p.Options) > 0 {
		var a anypb.Any
		if err := proto.Unmarshal(p.Options, &a); err != nil {
			return r, false, err
		}
		if r.Options, err = task.DecodeOptions(&a); err != nil {
			return r, false, err
		}
	}
	if !dir.HasSpec() {
		return r, false, nil
	}
	text, err := os.ReadFile(filepath.Join(string(dir), "config.json"))
	if err == nil {
		err = json.Unmarshal(text, r.Spec)
	}
	if err == nil && r.Spec.Linux == nil {
		err = errdefs.ErrInvalidArgument // the serving process says so
	}
	if err != nil {
		return r, false, err
	}
	role, err := bundle.RoleOf(p.ID, r.Spec.Annotations)
	return r, !role.Sandbox, err
}

// sayWhyCold logs why a pod's VM boots where one could have waited.
func sayWhyCold(log *slog.Logger, d description, w *boot.Warm) {
	if why := os.Getenv(bootstrap.EnvCold); w == nil && d.Config.Runtime.Standby > 0 && why != "" {
		log.Info(boot.BootsAnyway, "pod", d.ID, "reason", why)
	}
}

// replenish starts a process that waits for the next pod like this one, if too few do.
func replenish(outside *host.Outside, d description, r task.PodRequest, log *slog.Logger) {
	if outside == nil {
		return
	}
	err := boot.Unfit(d.Options)
	var key string
	if err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), describeTime)
		defer cancel()
		key, err = boot.Kind(ctx, d.quiet())
	}
	store, n := standby.Of(d.Config.Runtime.StateDir), 0
	if err == nil {
		err = store.Failed(key)
	}
	if err == nil {
		n, err = store.Waiting(key)
	}
	if err == nil && n < d.Config.Runtime.Standby {
		_, err = outside.Start(d.exe, []string{standbyArg}, order{r.Options, trimmed(r.Spec)})
	}
	if err != nil {
		log.Info("no standby VM is made ready for pods like this", "pod", r.ID, "reason", err)
	}
}

// quiet are the options with a log of nobody.
func (d description) quiet() boot.Options {
	o := d.Options
	o.Log = slog.New(slog.DiscardHandler)
	return o
}

// trimmed has the parts of a specification that decide which VM its pod gets.
func trimmed(s *specs.Spec) *specs.Spec {
	out := &specs.Spec{Annotations: s.Annotations, Linux: &specs.Linux{}}
	if r := s.Linux.Resources; r != nil {
		out.Linux.Resources = &specs.LinuxResources{Memory: r.Memory, CPU: r.CPU}
	}
	return out
}

// standbyMain is the life of a process that waits for a pod. in has its order.
func standbyMain(in io.Reader) error {
	if err := bootstrap.SetUp(); err != nil {
		return err
	}
	text, err := io.ReadAll(io.LimitReader(in, maxOrder))
	if err != nil {
		return fmt.Errorf("read what pods to wait for: %w", err)
	}
	var o order
	if err := json.Unmarshal(text, &o); err != nil {
		return fmt.Errorf("read what pods to wait for: %w", err)
	}
	// It and its VM are the first to go when memory is short.
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0); err != nil {
		return err
	}
	late := &lateLog{}
	d, _, err := describe(o.request(), slog.New(late))
	if err != nil {
		return err
	}
	w, m, err := await(o, d)
	if err != nil || w == nil {
		return err
	}
	err = shim.ServeHanded(backend(w, late), m.Text, m.Files)
	return errors.Join(err, w.End(context.Background())) // no pod came
}

// await boots a VM, unless enough wait, and waits for its pod. Without an error the VM is nil if none is needed.
func await(o order, d description) (_ *boot.Warm, m standby.Message, err error) {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	store := standby.Of(d.Config.Runtime.StateDir)
	outside := newOutside(d.Config)
	if outside == nil {
		return nil, m, nil // switched off meanwhile
	}
	lctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	unlock, err := store.Lock(lctx)
	if err != nil {
		return nil, m, err
	}
	locked := true
	defer func() {
		if locked {
			unlock()
		}
	}()
	key, err := boot.Kind(ctx, d.Options)
	if err != nil {
		return nil, m, err
	}
	n, err := enough(ctx, store, key, d)
	if err != nil || n < 0 {
		return nil, m, errors.Join(err, store.Fault(key, err))
	}
	place, err := store.Register()
	if err != nil {
		return nil, m, err
	}
	w, l, err := ready(ctx, place, d)
	if err := errors.Join(store.Fault(key, err), err); err != nil {
		return nil, m, errors.Join(err, os.RemoveAll(place.Dir))
	}
	unlock()
	locked = false
	if n+1 < d.Config.Runtime.Standby {
		_, err := outside.Start(d.exe, []string{standbyArg}, o)
		if err := store.Fault(key, err); err != nil {
			return nil, m, errors.Join(err, l.Close(), w.End(context.WithoutCancel(ctx)), os.RemoveAll(place.Dir))
		}
	}
	m, err = l.Wait(ctx, w.Done(), standbyCheck, check(ctx, o, d, w))
	if err != nil {
		return nil, m, errors.Join(err, w.End(context.WithoutCancel(ctx)), os.RemoveAll(place.Dir))
	}
	return w, m, nil
}

// enough counts the VMs that wait; -1: there are as many as there are to be.
func enough(ctx context.Context, store standby.Store, key string, d description) (n int, err error) {
	if err := store.Sweep(func(dir string) error { return virtcontainers.Cleanup(ctx, dir) }); err != nil {
		return 0, err
	}
	all, err := store.Waiting("")
	if err != nil {
		return 0, err
	}
	if n, err = store.Waiting(key); err != nil {
		return 0, err
	}
	if n >= d.Config.Runtime.Standby || all >= maxStandby {
		return -1, nil
	}
	return n, nil
}

// ready boots the VM and says that it waits.
func ready(ctx context.Context, place standby.Place, d description) (*boot.Warm, *standby.Listener, error) {
	o := d.Options
	o.ID, o.Namespace, o.Bundle = standbyPrefix+place.Name, "standby", place.Dir
	o.Spec = trimmed(o.Spec)
	o.Spec.Linux.CgroupsPath = "/coco-" + o.ID
	shape, err := boot.Shape(o)
	if err == nil {
		err = host.EnoughMemory(shape.MemoryMiB)
	}
	if err != nil {
		return nil, nil, err
	}
	w, err := boot.Prepare(ctx, o)
	if err != nil {
		return nil, nil, err
	}
	h := d.Config.Hypervisor
	l, err := place.Announce(standby.Meta{
		Key: w.Key, Made: time.Now().UTC(),
		Summary: fmt.Sprintf("%d CPUs, %d MiB, platform %s, %s", shape.VCPUs, shape.MemoryMiB, h.Platform, h.Kernel),
	})
	if err != nil {
		return nil, nil, errors.Join(err, w.End(context.WithoutCancel(ctx)))
	}
	return w, l, nil
}

// check returns a function that says why a VM is to wait no longer.
func check(ctx context.Context, o order, d description, w *boot.Warm) func() error {
	made := time.Now()
	return func() error {
		if time.Since(made) > standbyAge {
			return fmt.Errorf("it is older than %v", standbyAge)
		}
		if err := host.EnoughMemory(w.MemoryMiB() / 2); err != nil {
			return err
		}
		now, _, err := describe(o.request(), d.Log)
		if err != nil {
			return err
		}
		key, err := boot.Kind(ctx, now.Options)
		if err == nil && key != w.Key {
			err = errors.New("its configuration or a file of it has changed")
		}
		return err
	}
}

// lateLog is a log that goes nowhere until there is a pod.
type lateLog struct{ to atomic.Pointer[slog.Logger] }

func (l *lateLog) set(log *slog.Logger) {
	if l != nil {
		l.to.Store(log)
	}
}

// Enabled implements slog.Handler.
func (l *lateLog) Enabled(ctx context.Context, level slog.Level) bool {
	to := l.to.Load()
	return to != nil && to.Handler().Enabled(ctx, level)
}

// Handle implements slog.Handler.
func (l *lateLog) Handle(ctx context.Context, r slog.Record) error {
	return l.to.Load().Handler().Handle(ctx, r)
}

// WithAttrs implements slog.Handler. Nothing that has this log uses attributes of its own.
func (l *lateLog) WithAttrs([]slog.Attr) slog.Handler { return l }

// WithGroup implements slog.Handler, likewise.
func (l *lateLog) WithGroup(string) slog.Handler { return l }
