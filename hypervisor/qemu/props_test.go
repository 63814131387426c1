// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/coco-shim/coco/hypervisor"
	"github.com/coco-shim/coco/hypervisor/qemu/qmp"
	"github.com/coco-shim/coco/internal/testvm"
)

// binaries are the QEMUs that command lines are held against: Debian's own and those of tests/setup.sh.
var binaries = []struct {
	name string
	need testvm.Cap
	tees []hypervisor.TEE // that it has the object for
}{
	{"system", testvm.QEMU, nil},
	{"qemu-10.0", testvm.QEMU100, []hypervisor.TEE{hypervisor.TEESNP}},
	{"qemu-11.1", testvm.QEMU111, []hypervisor.TEE{hypervisor.TEESNP, hypervisor.TEETDX}},
}

func binaryPath(t *testing.T, name string, need testvm.Cap) string {
	t.Helper()
	testvm.Need(t, need)
	if name == "system" {
		return testDriver(t).opts.Path
	}
	return testvm.Unpacked(name, "qemu-system-x86_64")
}

// everySpec is a spec for every branch of Build.
func everySpec(t *testing.T) map[string]hypervisor.VMSpec {
	t.Helper()
	specs := map[string]hypervisor.VMSpec{
		"plain": plainSpec(), "snp": snpSpec(t), "snp anonymous": snpSpec(t), "tdx vsock": tdxSpec(t), "tdx unix": tdxSpec(t),
		"tdx without quotes": tdxSpec(t),
	}
	for name, change := range map[string]func(*hypervisor.VMSpec){
		"snp anonymous":      func(s *hypervisor.VMSpec) { s.SNP = &hypervisor.SNP{Policy: 0x30000} },
		"tdx unix":           func(s *hypervisor.VMSpec) { s.TDX = &hypervisor.TDX{QuoteUnix: "/run/qgs.socket"} },
		"tdx without quotes": func(s *hypervisor.VMSpec) { s.TDX = &hypervisor.TDX{} },
	} {
		s := specs[name]
		change(&s)
		specs[name] = s
	}
	for name, s := range maps.Clone(specs) {
		s.BlockBus = hypervisor.BlockBlk
		s.NICs = []hypervisor.NIC{{ID: "eth0", MAC: "02:00:00:00:00:01", Tap: s.NICs[0].Tap[:1]}}
		specs[name+", virtio-blk"] = s
	}
	kvm := plainSpec()
	kvm.Accel, kvm.Boot.Firmware = hypervisor.AccelKVM, firmware(t, 1<<20)
	specs["plain, KVM and firmware"] = kvm
	named := plainSpec()
	named.CPU.Model = "EPYC"
	specs["plain, named processor"] = named
	files := plainSpec()
	files.HostFiles = &hypervisor.HostFiles{Tag: "live", Socket: unopened()}
	specs["plain, files of the host"] = files
	return specs
}

// TestEveryQEMUHasWhatTheDriverEmits takes the command lines of Build apart and asks each binary for each option,
// object, device, machine, processor and property in them, and whether the property takes such a value.
func TestEveryQEMUHasWhatTheDriverEmits(t *testing.T) {
	par := Params{
		Binary: "q", CBitPos: 51, ReducedPhysBits: 1, Agent: unopened(), Control: unopened(),
		Console: unopened(),
	}
	for _, b := range binaries {
		t.Run(b.name, func(t *testing.T) {
			path := binaryPath(t, b.name, b.need)
			help, err := exec.Command(path, "-help").Output()
			if err != nil {
				t.Fatal(err)
			}
			err = ask(t.Context(), path, func(ctx context.Context, c *qmp.Client) error {
				q := &oracle{t: t, ctx: ctx, c: c, help: string(help), seen: map[string]bool{}}
				q.learn()
				for name, spec := range everySpec(t) {
					q.where, q.missing = name, nil
					q.commandLine(Build(spec, par).Argv)
					if spec.TEE != hypervisor.TEENone && !slices.Contains(b.tees, spec.TEE) {
						if object := "it has no user-creatable " + teeObjects[spec.TEE].name; !slices.Contains(q.missing, object) {
							t.Errorf("%s: missing %q, want the object of the TEE among them", name, q.missing)
						}
						continue
					}
					for _, m := range q.missing {
						t.Errorf("%s: %s", name, m)
					}
				}
				t.Logf("QEMU %s: %d questions answered", c.Version(), len(q.seen))
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}

// oracle answers what a QEMU binary has.
type oracle struct {
	t              *testing.T
	ctx            context.Context // of one test
	c              *qmp.Client
	help           string
	where          string
	missing        []string
	typed          bool // the values have JSON's types
	seen           map[string]bool
	types          map[string][]string // types by what they implement
	machines, cpus map[string]string   // type by name
	options        map[string][]string // parameters by option
	schema         map[string]schemaType
}

type schemaType struct {
	Name     string `json:"name"`
	MetaType string `json:"meta-type"`
	ArgType  string `json:"arg-type"`
	Tag      string `json:"tag"`
	JSONType string `json:"json-type"`
	Members  []struct {
		Name string `json:"name"`
		Type string `json:"type"`
	} `json:"members"`
	Variants []struct {
		Case string `json:"case"`
		Type string `json:"type"`
	} `json:"variants"`
}

type property struct {
	Name string `json:"name"`
	Type string `json:"type"`
}

func (q *oracle) call(command string, args, result any) {
	q.t.Helper()
	if err := q.c.Call(q.ctx, command, args, result); err != nil {
		q.t.Fatal(err)
	}
}

// learn asks for everything that is the same for all questions.
func (q *oracle) learn() {
	q.t.Helper()
	q.types, q.options, q.machines, q.cpus, q.schema = map[string][]string{}, map[string][]string{}, map[string]string{},
		map[string]string{}, map[string]schemaType{}
	var names []struct{ Name, Alias, Typename string }
	for _, base := range []string{"user-creatable", "device", "accel"} {
		q.call("qom-list-types", map[string]any{"implements": base}, &names)
		for _, n := range names {
			q.types[base] = append(q.types[base], n.Name)
		}
	}
	names = nil
	q.call("query-machines", nil, &names)
	for _, n := range names {
		q.machines[n.Name] = n.Name + "-machine"
		if n.Alias != "" {
			q.machines[n.Alias] = n.Name + "-machine"
		}
	}
	names = nil
	q.call("query-cpu-definitions", nil, &names)
	for _, n := range names {
		q.cpus[n.Name] = n.Typename
	}
	var options []struct {
		Option     string
		Parameters []property
	}
	q.call("query-command-line-options", nil, &options)
	for _, o := range options {
		q.options[o.Option] = []string{}
		for _, p := range o.Parameters {
			q.options[o.Option] = append(q.options[o.Option], p.Name)
		}
	}
	var schema []schemaType
	q.call("query-qmp-schema", nil, &schema)
	for _, s := range schema {
		q.schema[s.Name] = s
	}
}

// want records that something must be there.
func (q *oracle) want(ok bool, format string, args ...any) bool {
	what := fmt.Sprintf(format, args...)
	q.seen[what] = true
	if !ok {
		q.missing = append(q.missing, "it has no "+what)
	}
	return ok
}

// optionGroups are the names under which QEMU knows the parameters of options that have other names.
var optionGroups = map[string]string{"smp": "smp-opts", "m": "memory"}

// implied are the parameters that a first word without "=" is for.
var implied = map[string]string{
	"name": "guest", "sandbox": "enable", "smp": "cpus", "m": "size", "chardev": "backend",
	"mon": "chardev",
}

func (q *oracle) commandLine(argv []string) {
	for i := 1; i < len(argv); i++ {
		option := strings.TrimPrefix(argv[i], "-")
		q.want(strings.Contains(q.help, "\n-"+option) || strings.Contains(q.help, " or -"+option), "option -%s", option)
		value := ""
		if i+1 < len(argv) && !strings.HasPrefix(argv[i+1], "-") {
			i++
			value = argv[i]
		}
		q.option(option, value)
	}
}

func (q *oracle) option(option, value string) {
	switch option {
	case "nodefaults", "no-user-config", "no-reboot", "display", "bios", "kernel", "initrd", "append", "serial":
	case "machine":
		name, props := words(value)
		if q.want(q.machines[name] != "", "machine %s", name) {
			q.machine(q.machines[name], props)
		}
	case "accel":
		name, props := words(value)
		q.object("accel", name+"-accel", props)
	case "cpu":
		name, props := words(value)
		if q.want(q.cpus[name] != "", "processor %s", name) {
			q.properties("qom-list-properties", q.cpus[name], props)
		}
	case "object":
		q.object("user-creatable", "", value)
	case "device":
		q.object("device", "", value)
	case "blockdev":
		q.schemaObject("blockdev-add", parse(q.t, value))
	case "netdev":
		name, props := words(value)
		m := map[string]any{"type": name}
		for k, v := range keywords(props) {
			m[k] = v
		}
		q.schemaNames("netdev_add", m)
	default:
		group := option
		if g := optionGroups[option]; g != "" {
			group = g
		}
		params, ok := q.options[group]
		if !q.want(ok, "parameters of option -%s", option) {
			return
		}
		for k := range keywords(impliedFirst(option, value)) {
			if k == "id" { // of every option that takes parameters
				continue
			}
			q.want(slices.Contains(params, k), "parameter %s of option -%s", k, option)
		}
	}
}

func impliedFirst(option, value string) string {
	if first, _, _ := strings.Cut(value, ","); !strings.Contains(first, "=") {
		return implied[option] + "=" + value
	}
	return value
}

// machine properties that QEMU hands on to the accelerator.
func (q *oracle) machine(typ, props string) {
	rest := keywords(props)
	if v, ok := rest["kernel_irqchip"]; ok {
		q.properties("qom-list-properties", "kvm-accel", "kernel-irqchip="+v.(string))
		delete(rest, "kernel_irqchip")
	}
	q.check("qom-list-properties", typ, rest)
}

// object checks something with a type among those that implement base and properties.
func (q *oracle) object(base, typ, value string) {
	props := keywords(value)
	q.typed = strings.HasPrefix(value, "{")
	defer func() { q.typed = false }()
	if q.typed {
		props = parse(q.t, value)
	} else if typ == "" {
		var rest string
		typ, rest = words(value)
		props = keywords(rest)
	}
	for _, key := range []string{"driver", "qom-type"} {
		if v, ok := props[key]; ok {
			typ = v.(string)
			delete(props, key)
		}
	}
	delete(props, "id")
	command := "qom-list-properties"
	if base == "device" {
		command = "device-list-properties"
		delete(props, "bus") // of every device
	}
	if q.want(slices.Contains(q.types[base], typ), "%s %s", base, typ) {
		q.check(command, typ, props)
	}
}

func (q *oracle) properties(command, typ, props string) { q.check(command, typ, keywords(props)) }

func (q *oracle) check(command, typ string, props map[string]any) {
	var list []property
	q.call(command, map[string]any{"typename": typ}, &list)
	for k, v := range props {
		i := slices.IndexFunc(list, func(p property) bool { return p.Name == k })
		if q.want(i >= 0, "property %s of %s", k, typ) {
			q.want(fits(list[i].Type, v, q.typed), "property %s of %s that takes %#v: it is a %s", k, typ, v, list[i].Type)
		}
	}
}

// fits tells whether a property of a type takes a value. On the command line all values are words; in JSON they
// have types, and QEMU insists on the right one.
func fits(typ string, v any, typed bool) bool {
	s, isString := v.(string)
	_, isBool := v.(bool)
	switch {
	case typ == "bool":
		return isBool || !typed && (s == "on" || s == "off")
	case typ == "OnOffAuto":
		return s == "on" || s == "off" || s == "auto"
	case strings.Contains(typ, "|"):
		return slices.Contains(strings.Split(typ, "|"), s)
	case typ == "size", strings.HasPrefix(typ, "int"), strings.HasPrefix(typ, "uint"):
		if _, ok := v.(float64); ok {
			return true
		}
		_, err := strconv.ParseInt(strings.TrimSuffix(s, "M"), 0, 64)
		return err == nil
	case strings.HasPrefix(typ, "str"), strings.HasPrefix(typ, "link<"):
		return isString
	}
	return !isBool // a type of QEMU's own
}

// schemaObject checks the arguments of a command against QMP's schema, with their types.
func (q *oracle) schemaObject(command string, args map[string]any) {
	c, ok := q.schema[command]
	if q.want(ok, "command %s", command) {
		q.member(c.ArgType, command, args, true)
	}
}

// schemaNames is schemaObject for values that are words of a command line.
func (q *oracle) schemaNames(command string, args map[string]any) {
	c, ok := q.schema[command]
	if q.want(ok, "command %s", command) {
		q.member(c.ArgType, command, args, false)
	}
}

func (q *oracle) member(typ, path string, v any, typed bool) {
	s := q.schema[typ]
	switch s.MetaType {
	case "object":
		m, ok := v.(map[string]any)
		if !q.want(ok, "object at %s", path) {
			return
		}
		for k, v := range m {
			mt := q.memberType(s, m, k)
			if q.want(mt != "", "member %s.%s", path, k) {
				q.member(mt, path+"."+k, v, typed)
			}
		}
	case "alternate":
		if _, ok := v.(map[string]any); ok {
			for _, alt := range s.Members {
				if q.schema[alt.Type].MetaType == "object" {
					q.member(alt.Type, path, v, typed)
				}
			}
		}
	case "builtin":
		if typed {
			_, isBool := v.(bool)
			q.want((s.JSONType == "boolean") == isBool, "%s at %s for %#v", s.JSONType, path, v)
		}
	}
}

func (q *oracle) memberType(s schemaType, m map[string]any, k string) string {
	for _, f := range s.Members {
		if f.Name == k {
			return f.Type
		}
	}
	for _, variant := range s.Variants {
		if variant.Case == m[s.Tag] {
			return q.memberType(q.schema[variant.Type], m, k)
		}
	}
	return ""
}

// words splits "name,k=v,…".
func words(value string) (name, rest string) {
	name, rest, _ = strings.Cut(value, ",")
	return name, rest
}

func keywords(s string) map[string]any {
	m := map[string]any{}
	for kv := range strings.SplitSeq(s, ",") {
		if k, v, ok := strings.Cut(kv, "="); ok {
			m[k] = v
		}
	}
	return m
}

func parse(t *testing.T, s string) map[string]any {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal([]byte(s), &m); err != nil {
		t.Fatal(err)
	}
	return m
}
