// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package guest builds the guest image (a kernel and an initramfs made from packages of a named
// distribution suite, coco-agent as /init and an OCI runtime) and compares an image with its manifest.
//
// A build fetches packages through an apt state of its own, so that the host's sources and packages stay
// unchanged. It takes the few files it needs out of them in memory and writes them in an order and form that depend
// only on their content: the same packages and agent give the same bytes. It does not compile the
// agent, and does not decide where the image is installed.
package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/guest/part"
)

const debArch = "amd64"

// DefaultKernel is the package that points to the newest kernel made for virtual machines.
const DefaultKernel = "linux-image-cloud-amd64"

// DefaultSuite is the Debian release that images are made from.
const DefaultSuite = "trixie"

// DefaultCache keeps fetched packages between builds.
const DefaultCache = "/var/cache/coco/image"

const (
	originAgent = "coco-agent build"
	originImage = "coco guest build"

	originUnsigned = ", signature removed"
)

// Options says what to build.
type Options struct {
	Suite          string // DefaultSuite when empty
	Version        string // state of the archive, as snapshot.debian.org names it (20260801T000000Z); empty: the newest
	Mirror         string // another archive; excludes Version
	SecurityMirror string // with Mirror: the archive of security updates, if any
	Kernel         string // kernel package; DefaultKernel when empty
	Runtime        string // crun or runc; DefaultRuntime when empty
	Agent          string // path of a static coco-agent
	// Parts has the static programs that only some pods need, by the names of their parts, such as contract.PartTrust.
	Parts       map[string]string
	Out         string // directory to write to; made when missing
	Cache       string // DefaultCache when empty
	Lock        string // lock file: obeyed when it exists, written when not
	Locked      bool   // obey the lock of this release instead; excludes Lock
	RenewLock   bool   // write Lock anew, from the newest packages
	Compression Compression
	Cmdline     string // DefaultCmdline when empty
	Offline     bool   // use the files of the cache only
	// MaxReleaseAge bounds the age of the archive's index; zero: as long as the index itself says.
	MaxReleaseAge time.Duration
	Progress      Progress

	keyring string // debianKeyring when empty; tests have their own
}

// DefaultRuntime, DefaultCompression and DefaultCmdline are reasoned in docs/decisions/guest-image.md.
const (
	DefaultRuntime     = "crun"
	DefaultCompression = CompressNone
	DefaultCmdline     = contract.Cmdline +
		" cryptomgr.notests lsm=landlock,yama initcall_blacklist=jent_mod_init,load_system_certificate_list,trace_eval_init"
)

// runtimes maps an OCI runtime to its program; the package has the runtime's name.
var runtimes = map[string]string{"crun": contract.CrunFile, "runc": contract.RuncFile}

// Progress gets the steps of a build.
type Progress interface {
	// Step begins a step; total is 0 when its length is not known.
	Step(title string, total int64) Task
}

// Task is a step under way.
type Task interface {
	Set(done int64)
	Done(err error)
}

type silent struct{}

func (silent) Step(string, int64) Task { return silent{} }
func (silent) Set(int64)               {}
func (silent) Done(error)              {}

func (o *Options) setDefaults() error {
	def := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	def(&o.Suite, DefaultSuite)
	def(&o.Kernel, DefaultKernel)
	def(&o.Runtime, DefaultRuntime)
	def(&o.Cache, DefaultCache)
	def(&o.Cmdline, DefaultCmdline)
	def((*string)(&o.Compression), string(DefaultCompression))
	if o.Progress == nil {
		o.Progress = silent{}
	}
	var errs []error
	if _, ok := runtimes[o.Runtime]; !ok {
		errs = append(errs, fmt.Errorf("runtime %q: not one of crun, runc", o.Runtime))
	}
	if _, err := ParseCompression(string(o.Compression)); err != nil {
		errs = append(errs, err)
	}
	if strings.Trim(o.Suite, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		errs = append(errs, fmt.Errorf("suite %q: not a suite's name", o.Suite))
	}
	if strings.Trim(o.Version, "0123456789TZ") != "" {
		errs = append(errs, fmt.Errorf("version %q: not of the form 20260801T000000Z", o.Version))
	}
	if o.Out == "" {
		errs = append(errs, errors.New("no output directory is given"))
	}
	if o.Locked && (o.Lock != "" || o.RenewLock) {
		errs = append(errs, errors.New("--locked takes the lock of this release: --lock and --renew-lock name another"))
	}
	if o.RenewLock && o.Lock == "" {
		errs = append(errs, errors.New("--renew-lock: no lock file is named by --lock"))
	}
	if o.Agent == "" {
		errs = append(errs, errors.New("no coco-agent binary is given"))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("image build: %w", err)
	}
	var err error
	if o.Cache, err = filepath.Abs(o.Cache); err != nil {
		return fmt.Errorf("image build: %w", err)
	}
	return nil
}

// builder gathers one image.
type builder struct {
	opts    Options
	apt     *apt
	lock    *Lock
	updated bool
	used    map[string]Package
	entries map[string]Entry
	kernel  Kernel
	parts   []part.Part
}

// Build makes an image in o.Out and returns its manifest, which is also written there. The directory's files
// are replaced one by one, the manifest last, so that a build cut short is noticed by Inspect.
func Build(ctx context.Context, o Options) (Manifest, error) {
	if err := o.setDefaults(); err != nil {
		return Manifest{}, err
	}
	agent, err := readAgent(o.Agent)
	if err != nil {
		return Manifest{}, err
	}
	b := &builder{opts: o, used: map[string]Package{}, entries: map[string]Entry{}}
	if b.parts, err = part.Build(ctx, o.Parts); err != nil {
		return Manifest{}, err
	}
	if b.lock, err = o.pins(); err != nil {
		return Manifest{}, err
	}
	if b.apt, err = newApt(o); err != nil {
		return Manifest{}, err
	}
	unlock, err := b.apt.lock(ctx)
	if err != nil {
		return Manifest{}, err
	}
	defer unlock()
	bz, mods, err := b.kernelFiles(ctx)
	if err != nil {
		return Manifest{}, err
	}
	program := strings.TrimPrefix(runtimes[o.Runtime], "/")
	rt, err := b.runtimeFiles(ctx, o.Runtime, program)
	if err != nil {
		return Manifest{}, err
	}
	b.addSkeleton(agent, program)
	b.addModules(mods)
	b.addList(contract.PartsFile, part.List(b.parts))
	for _, f := range rt {
		b.addPackageFile(f)
	}
	return b.write(bz)
}

func readAgent(name string) ([]byte, error) {
	agent, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("image build: read the agent: %w", err)
	}
	libs, err := needs(agent)
	if err != nil {
		return nil, fmt.Errorf("image build: agent %s is no program for Linux: %w", name, err)
	}
	if len(libs) > 0 {
		return nil, fmt.Errorf("image build: agent %s is not static: it needs %s; build it with CGO_ENABLED=0", name,
			strings.Join(libs, ", "))
	}
	return agent, nil
}

// resolveAll finds packages in the lock or in the archive.
func (b *builder) resolveAll(ctx context.Context, names []string) ([]Package, error) {
	pkgs := make([]Package, 0, len(names))
	for _, name := range names {
		p, err := b.resolve(ctx, name)
		if err != nil {
			return nil, err
		}
		pkgs = append(pkgs, p)
	}
	return pkgs, nil
}

func (b *builder) resolve(ctx context.Context, name string) (Package, error) {
	var pinned Package
	if b.lock != nil {
		p, ok := b.lock.find(name)
		if !ok {
			return Package{}, fmt.Errorf("package %s is not in %s, which was written for another image: remove it, or name "+
				"another with --lock", name, b.opts.lockName())
		}
		if file, err := b.apt.cached(p); err != nil || file != "" {
			return p, err
		}
		pinned = p
	}
	if !b.updated {
		if err := b.apt.update(ctx, b.lock != nil); err != nil {
			return Package{}, err
		}
		b.updated = true
	}
	if b.lock != nil { // fetch compares the digest with the lock's, not with the archive's
		return pinned, nil
	}
	return b.apt.resolve(ctx, name)
}

func (b *builder) record(p Package) {
	if p.Name != "" {
		p.depends = nil
		b.used[p.Name] = p
	}
}

// kernelPackage resolves the package that has the kernel's files; the usual name is one that only depends on it.
func (b *builder) kernelPackage(ctx context.Context) (Package, error) {
	if b.lock != nil {
		return b.resolve(ctx, b.lock.Kernel)
	}
	p, err := b.resolve(ctx, b.opts.Kernel)
	if err != nil {
		return Package{}, err
	}
	for _, d := range p.depends {
		if strings.HasPrefix(d, "linux-image-") {
			return b.resolve(ctx, d)
		}
	}
	return p, nil
}

// kernelFiles returns the bzImage and the modules to carry.
func (b *builder) kernelFiles(ctx context.Context) ([]byte, []module, error) {
	p, err := b.kernelPackage(ctx)
	if err != nil {
		return nil, nil, err
	}
	debs, err := b.apt.fetch(ctx, p)
	if err != nil {
		return nil, nil, err
	}
	task := b.opts.Progress.Step("unpack "+p.String(), 0)
	files, err := unpackDeb(ctx, debs[0], p, func(name string) bool {
		return strings.HasPrefix(name, "boot/vmlinuz-") || strings.Contains(name, "lib/modules/")
	})
	task.Done(err)
	if err != nil {
		return nil, nil, err
	}
	b.record(p)
	set := moduleSet{files: map[string]tarFile{}, builtin: map[string]bool{}}
	var bz []byte
	for _, f := range files {
		switch release, isKernel := strings.CutPrefix(f.path, "boot/vmlinuz-"); {
		case isKernel:
			bz = f.data
			b.kernel = Kernel{Package: p.Name, Version: p.Version, Release: release}
		case path.Base(f.path) == "modules.builtin":
			for line := range strings.FieldsSeq(string(f.data)) {
				set.builtin[moduleName(line)] = true
			}
		case strings.HasSuffix(f.path, ".ko"), strings.HasSuffix(f.path, ".ko.xz"):
			f.path = usrPath(f.path)
			set.files[moduleName(f.path)] = f
		}
	}
	if bz == nil {
		return nil, nil, fmt.Errorf("package %s holds no kernel below /boot: --kernel must name a package linux-image-…", p)
	}
	mods, err := set.closure()
	if err != nil {
		return nil, nil, fmt.Errorf("package %s: %w", p, err)
	}
	return bz, mods, nil
}

func (b *builder) add(e Entry) {
	for dir := path.Dir(e.Path); dir != "."; dir = path.Dir(dir) {
		if _, ok := b.entries[dir]; !ok {
			b.entries[dir] = Entry{Path: dir, Mode: modeDir | 0o755, Origin: originImage}
		}
	}
	b.entries[e.Path] = e
}

// addSkeleton adds what is ours: the agent, mount points and the links of a merged /usr.
func (b *builder) addSkeleton(agent []byte, program string) {
	for _, d := range []string{"dev", "etc", "proc", "run", "sys", "tmp"} {
		b.add(Entry{Path: d, Mode: modeDir | 0o755, Origin: originImage})
	}
	for _, l := range []string{"bin", "lib", "lib64", "sbin"} {
		b.add(Entry{Path: l, Mode: modeSymlink | 0o777, Target: "usr/" + l, Origin: originImage})
	}
	if dir := path.Dir(program); dir != "usr/bin" {
		b.add(Entry{Path: "usr/bin/" + path.Base(program), Mode: modeSymlink | 0o777, Target: "../" + path.Base(dir) + "/" +
			path.Base(program), Origin: originImage})
	}
	b.add(Entry{Path: "init", Mode: modeRegular | 0o755, Data: agent, Origin: originAgent})
}

func (b *builder) addModules(mods []module) {
	for _, m := range mods {
		origin := b.kernel.Package + "=" + b.kernel.Version
		if !m.packed() {
			origin += originUnsigned
		}
		b.add(Entry{Path: m.path, Mode: modeRegular | 0o644, Data: m.data, Origin: origin})
	}
	b.addList(contract.ModulesFile, moduleList(mods))
	b.addList(contract.AliasesFile, aliasList(mods))
}

// addList adds a file that the build itself writes.
func (b *builder) addList(path string, data []byte) {
	b.add(Entry{Path: strings.TrimPrefix(path, "/"), Mode: modeRegular | 0o644, Data: data, Origin: originImage})
}

func (b *builder) addPackageFile(f tarFile) {
	e := Entry{Path: f.path, Mode: modeRegular | f.mode, Data: f.data, Target: f.target, Origin: f.origin}
	if f.target != "" {
		e.Mode = modeSymlink | 0o777
	}
	b.add(e)
}

// write packs the image and puts it into the output directory.
func (b *builder) write(bz []byte) (_ Manifest, err error) {
	task := b.opts.Progress.Step("write "+b.opts.Out, 0)
	defer func() { task.Done(err) }()
	vmlinux, err := ExtractVmlinux(bz)
	if err != nil {
		return Manifest{}, fmt.Errorf("image build: kernel %s: %w", b.kernel.Release, err)
	}
	m := Manifest{
		Schema: manifestSchema, Suite: b.opts.Suite, Kernel: b.kernel, Cmdline: b.opts.Cmdline,
		Runtime: b.opts.Runtime, Compression: b.opts.Compression,
	}
	entries := make([]Entry, 0, len(b.entries))
	for _, name := range sortedKeys(b.entries) {
		entries = append(entries, b.entries[name])
		m.Files = append(m.Files, newFile(b.entries[name]))
	}
	initrd, err := packInitrd(entries, b.opts.Compression)
	if err != nil {
		return Manifest{}, fmt.Errorf("image build: %w", err)
	}
	for _, name := range sortedKeys(b.used) {
		m.Packages = append(m.Packages, b.used[name])
	}
	m.Artifacts = []Artifact{
		newArtifact(VmlinuxName, vmlinux), newArtifact(VmlinuzName, bz),
		newArtifact(InitrdName, initrd),
	}
	files := map[string][]byte{VmlinuxName: vmlinux, VmlinuzName: bz, InitrdName: initrd}
	for _, p := range b.parts {
		files[p.File()] = p.Image
		m.Artifacts = append(m.Artifacts, newArtifact(p.File(), p.Image))
	}
	return m, b.store(m, files)
}

func packInitrd(entries []Entry, c Compression) ([]byte, error) {
	var cpio bytes.Buffer
	if err := WriteCPIO(&cpio, entries); err != nil {
		return nil, err
	}
	return c.compress(cpio.Bytes())
}

func (b *builder) store(m Manifest, files map[string][]byte) error {
	if err := os.MkdirAll(b.opts.Out, 0o755); err != nil {
		return fmt.Errorf("image build: %w", err)
	}
	manifest, err := encodeJSON(m)
	if err != nil {
		return fmt.Errorf("image build: %w", err)
	}
	lock, err := encodeJSON(Lock{Suite: m.Suite, Kernel: m.Kernel.Package, Packages: m.Packages})
	if err != nil {
		return fmt.Errorf("image build: %w", err)
	}
	for _, name := range sortedKeys(files) {
		if err := writeAtomic(filepath.Join(b.opts.Out, name), files[name]); err != nil {
			return err
		}
	}
	if b.opts.Lock != "" && b.lock == nil {
		if err := writeAtomic(b.opts.Lock, lock); err != nil {
			return err
		}
	}
	if err := writeAtomic(filepath.Join(b.opts.Out, LockName), lock); err != nil {
		return err
	}
	return writeAtomic(filepath.Join(b.opts.Out, ManifestName), manifest)
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
