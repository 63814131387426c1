// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package gen

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	corev1 "k8s.io/api/core/v1"

	"github.com/coco-shim/coco/plan/volume"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/policy/gen/predict"
)

// Kubelet's plugins, as its directories name them.
const (
	pluginEmptyDir  = "empty-dir"
	pluginConfigMap = "configmap"
	pluginSecret    = "secret"
	pluginProjected = "projected"
	pluginDownward  = "downward-api"
)

const (
	tokenDir    = "/var/run/secrets/kubernetes.io/serviceaccount" //nolint:gosec // a path
	tokenVolume = "kube-api-access"
)

// volumeOf is a volume of the pod on the predicted node and in the policy.
type volumeOf struct {
	policy policy.Volume
	plugin string // "": the volume cannot be mounted
	claim  bool   // it is a disk of the host, if its claim is for a raw block
	ro     bool   // such a disk is not written to
	bad    error  // why not
	used   bool   // a container mounts it
}

func (g *generator) volume(name string) *volumeOf {
	i := slices.IndexFunc(g.volumes, func(v volumeOf) bool { return v.policy.Name == name })
	if i < 0 {
		return nil
	}
	return &g.volumes[i]
}

// addToken adds the volume and the mounts that admission adds to a pod for the token of its service account.
func (g *generator) addToken() {
	if mounted, _ := g.token(); !mounted {
		return
	}
	used := false
	for _, list := range [][]corev1.Container{g.pod.InitContainers, g.pod.Containers} {
		for i := range list {
			if !slices.ContainsFunc(list[i].VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == tokenDir }) {
				used = true
				list[i].VolumeMounts = append(list[i].VolumeMounts, corev1.VolumeMount{
					Name: tokenVolume, MountPath: tokenDir, ReadOnly: true,
				})
			}
		}
	}
	if used {
		g.pod.Volumes = append(g.pod.Volumes, corev1.Volume{Name: tokenVolume, VolumeSource: corev1.VolumeSource{
			Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
				{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{}},
			}},
		}})
	}
}

// token says whether the pod gets a token of its service account; sure: its manifests say so.
func (g *generator) token() (mounted, sure bool) {
	account, known := g.Objects.Account(g.Workload.Namespace, g.meta.ServiceAccount)
	for _, set := range []*bool{g.pod.AutomountServiceAccountToken, account.AutomountServiceAccountToken} {
		if set != nil {
			return *set, true
		}
	}
	return true, known
}

func (g *generator) hasToken() bool {
	mounted, _ := g.token()
	return mounted
}

// planVolumes describes the pod's volumes.
func (g *generator) planVolumes() error {
	for _, name := range g.Workload.Claims {
		g.volumes = append(g.volumes, volumeOf{policy: policy.Volume{Name: name}, claim: true, bad: errClaim})
	}
	var errs []error
	for _, v := range g.pod.Volumes {
		out, err := g.planVolume(v)
		if keys := g.Options.Signed[v.Name]; len(keys) > 0 {
			out, err = signedVolume(v, out, keys)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("volume %s: %w", v.Name, err))
		}
		out.policy.Name = v.Name
		g.volumes = append(g.volumes, out)
	}
	return errors.Join(errs...)
}

// signedVolume is a volume whose files its owner signs. It does not matter which they are today.
func signedVolume(v corev1.Volume, out volumeOf, keys []string) (volumeOf, error) {
	if v.ConfigMap == nil && v.Secret == nil && v.Projected == nil {
		return out, errors.New("it has no files that an owner signs: it is no configMap, secret or projected volume")
	}
	out.policy.Content = &policy.Content{Rule: policy.ContentSigned, Keys: keys}
	return out, nil
}

func (g *generator) planVolume(v corev1.Volume) (out volumeOf, err error) {
	switch {
	case v.EmptyDir != nil:
		return g.emptyDir(v.EmptyDir)
	case v.ConfigMap != nil:
		out.plugin = pluginConfigMap
		out.policy.Kind = policy.VolumeCopy
		out.policy.Content, err = g.configMapContent(v.ConfigMap.Name, v.ConfigMap.Items)
	case v.Secret != nil:
		out.plugin = pluginSecret
		out.policy.Kind = policy.VolumeCopy
		out.policy.Content, err = g.secretContent(v.Secret.SecretName, v.Secret.Items)
	case v.DownwardAPI != nil:
		out.plugin = pluginDownward
		out.policy.Kind, out.policy.Content = policy.VolumeCopy, unpinned()
	case v.Projected != nil:
		out.plugin = pluginProjected
		out.policy.Kind = policy.VolumeCopy
		out.policy.Content, err = g.projected(v.Projected.Sources)
	case v.PersistentVolumeClaim != nil:
		out.claim, out.ro, out.bad = true, v.PersistentVolumeClaim.ReadOnly, errClaim
	case v.Ephemeral != nil:
		out.claim, out.bad = true, errClaim
	case v.HostPath != nil:
		out.bad = errors.New("is of the host (hostPath), and a confidential guest takes no files of the host: " +
			"use a volume of the pod")
	default:
		out.bad = errors.New("is of a kind of which no policy can be made: it is not emptyDir, configMap, secret, " +
			"projected or downwardAPI")
	}
	if c := out.policy.Content; c != nil && c.Rule == policy.ContentUnpinned && v.Name != tokenVolume {
		g.note("volume %s has content that is not pinned: the host decides about it", v.Name)
	}
	return out, err
}

// emptyDir predicts the mode that kubelet gives the directory: 0777, and for a tmpfs, which it mounts over that, the
// kernel's 01777; a group that owns it adds the bit that files inherit it by (pkg/volume/emptydir, pkg/volume).
func (g *generator) emptyDir(e *corev1.EmptyDirVolumeSource) (out volumeOf, err error) {
	out.plugin = pluginEmptyDir
	mode := 0o777
	switch e.Medium {
	case corev1.StorageMediumDefault:
		out.policy.Kind = policy.VolumeDisk
	case corev1.StorageMediumMemory:
		out.policy.Kind = policy.VolumeMemory
		mode = 0o1777
	default:
		out.plugin = ""
		return out, fmt.Errorf("emptyDir of medium %s is not possible in the VM; use Memory", e.Medium)
	}
	if e.Mode != nil {
		return out, errors.New("emptyDir.mode is a field of an alpha feature, of which no policy can be made")
	}
	if sc := g.pod.SecurityContext; sc != nil && sc.FSGroup != nil && *sc.FSGroup != 0 {
		mode |= 0o2000
		out.policy.GID = uint32(*sc.FSGroup) //nolint:gosec // the API server bounds it
	}
	out.policy.Mode = strconv.FormatInt(int64(mode), 8)
	return out, nil
}

var errClaim = errors.New("is a claim whose file system the host mounts, and a confidential guest takes no files of " +
	"the host: claim a raw block (volumeMode: Block), give it to the container as a device (volumeDevices) and let the " +
	"program encrypt what it writes")

func unpinned() *policy.Content { return &policy.Content{Rule: policy.ContentUnpinned} }

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func (g *generator) configMapContent(name string, items []corev1.KeyToPath) (*policy.Content, error) {
	m, ok := objects{g}.ConfigMap(name)
	data := map[string][]byte{}
	for k, v := range m.Data {
		data[k] = []byte(v)
	}
	for k, v := range m.BinaryData {
		data[k] = v
	}
	return g.pinned("ConfigMap", name, ok, data, items)
}

func (g *generator) secretContent(name string, items []corev1.KeyToPath) (*policy.Content, error) {
	s, ok := objects{g}.Secret(name)
	return g.pinned("Secret", name, ok, predict.SecretData(s), items)
}

// pinned pins the files that a volume makes of an object's data.
func (g *generator) pinned(
	kind, name string, ok bool, data map[string][]byte, items []corev1.KeyToPath,
) (*policy.Content, error) {
	if !ok && g.Options.Unpinned {
		return unpinned(), nil
	}
	if !ok {
		return nil, fmt.Errorf("%s %q is not among the manifests: give its manifest as a further file, or admit any content "+
			"with --allow-unpinned", kind, name)
	}
	out := &policy.Content{Rule: policy.ContentDigest}
	if len(items) == 0 {
		for _, k := range sortedKeys(data) {
			out.Files = append(out.Files, policy.File{Path: k, SHA256: digest(data[k])})
		}
		return out, nil
	}
	for _, it := range items {
		b, has := data[it.Key]
		if !has {
			return nil, fmt.Errorf("%s %q has no key %q", kind, name, it.Key)
		}
		out.Files = append(out.Files, policy.File{Path: path.Clean(it.Path), SHA256: digest(b)})
	}
	sortFiles(out.Files)
	return out, nil
}

func sortFiles(list []policy.File) {
	slices.SortFunc(list, func(a, b policy.File) int { return strings.Compare(a.Path, b.Path) })
}

// projected pins the files of all sources; one source whose content only the cluster knows makes the volume unpinned.
func (g *generator) projected(list []corev1.VolumeProjection) (*policy.Content, error) {
	out := &policy.Content{Rule: policy.ContentDigest}
	for _, p := range list {
		c, err := g.projection(p)
		if err != nil {
			return nil, err
		}
		if c.Rule == policy.ContentUnpinned {
			return c, nil
		}
		out.Files = append(out.Files, c.Files...)
	}
	sortFiles(out.Files)
	return out, nil
}

func (g *generator) projection(p corev1.VolumeProjection) (*policy.Content, error) {
	switch {
	case p.ConfigMap != nil:
		return g.configMapContent(p.ConfigMap.Name, p.ConfigMap.Items)
	case p.Secret != nil:
		return g.secretContent(p.Secret.Name, p.Secret.Items)
	}
	return unpinned(), nil
}

// mounts are a container's volume mounts as kubelet passes them.
func (g *generator) mounts(c *corev1.Container) (out []predict.Mount, err error) {
	for i, m := range c.VolumeMounts {
		v := g.volume(m.Name)
		switch {
		case v == nil:
			return nil, fmt.Errorf("mount %s: the pod has no volume %q", m.MountPath, m.Name)
		case v.bad != nil:
			return nil, fmt.Errorf("mount %s: volume %s %w", m.MountPath, m.Name, v.bad)
		case m.SubPathExpr != "":
			return nil, fmt.Errorf("mount %s: subPathExpr is not supported, since only the node knows what it becomes",
				m.MountPath)
		}
		pm := predict.Mount{
			Source: g.hostPath(v), Destination: m.MountPath,
			ReadOnly:  m.ReadOnly || v.plugin != pluginEmptyDir,
			Recursive: m.RecursiveReadOnly != nil && *m.RecursiveReadOnly == corev1.RecursiveReadOnlyEnabled,
		}
		if m.MountPropagation != nil {
			pm.Propagation = string(*m.MountPropagation)
		}
		if m.SubPath != "" {
			pm.Source = path.Join(predict.SubPathsDir, m.Name, c.Name, strconv.Itoa(i))
		}
		out = append(out, pm)
	}
	return out, nil
}

// disks are a container's raw block volumes as kubelet passes them.
func (g *generator) disks(c *corev1.Container) (out []predict.Disk, err error) {
	for _, d := range c.VolumeDevices {
		v := g.volume(d.Name)
		switch {
		case v == nil:
			return nil, fmt.Errorf("device %s: the pod has no volume %q", d.DevicePath, d.Name)
		case !v.claim:
			return nil, fmt.Errorf("device %s: volume %s is no claim, and only claims are raw blocks", d.DevicePath, d.Name)
		}
		g.note("device %s is a disk of the host, which can read and change what is on it: encrypt and authenticate it",
			d.DevicePath)
		out = append(out, predict.Disk{Path: d.DevicePath, ReadOnly: v.ro})
	}
	return out, nil
}

func (g *generator) hostPath(v *volumeOf) string {
	return predict.VolumesDir + v.plugin + "/" + v.policy.Name
}

// mountTable is the part of the predicted node's mounts that plan/volume looks at: tmpfs of emptyDirs, and sub paths.
func (g *generator) mountTable(c *corev1.Container) []*mountinfo.Info {
	table := []*mountinfo.Info{{Major: 8, Minor: 1, Root: "/", Mountpoint: "/", FSType: "ext4"}}
	for i, v := range g.volumes {
		if v.policy.Kind == policy.VolumeMemory {
			table = append(table, &mountinfo.Info{Minor: 1 + i, Root: "/", Mountpoint: g.hostPath(&v), FSType: "tmpfs"})
		}
	}
	for i, m := range c.VolumeMounts {
		v := g.volume(m.Name)
		if m.SubPath == "" {
			continue
		}
		at := &mountinfo.Info{
			Major: 8, Minor: 1, Root: path.Join(g.hostPath(v), m.SubPath), FSType: "ext4",
			Mountpoint: path.Join(predict.SubPathsDir, m.Name, c.Name, strconv.Itoa(i)),
		}
		if v.policy.Kind == policy.VolumeMemory {
			at.Major, at.FSType = 0, "tmpfs"
			at.Minor = 1 + slices.IndexFunc(g.volumes, func(o volumeOf) bool { return o.policy.Name == m.Name })
			at.Root = path.Join("/", m.SubPath)
		}
		table = append(table, at)
	}
	return table
}

// source says where a bind mount's content comes from in the guest.
func (g *generator) source(c *corev1.Container, img Image, b volume.Bind) (m policy.Mount, err error) {
	switch b.Kind {
	case volume.Memory, volume.Disk, volume.Updated:
		v := g.volume(path.Base(b.Source))
		v.used = true
		m.Source.Volume = &policy.Use{Name: v.policy.Name, SubPath: b.Sub}
		if _, sure := g.token(); v.policy.Name == tokenVolume && !sure {
			m.Optional = true
		}
	case volume.Termination:
		m.Source.Copy = Single(nil) // kubelet makes an empty file
	case volume.Copied:
		m.Source.Copy, err = g.copied(c, img, b)
	default:
		err = fmt.Errorf("a mount of kind %s is not supported", b.Kind)
	}
	return m, err
}

// Single pins a mount that is one file.
func Single(b []byte) *policy.Content {
	return &policy.Content{Rule: policy.ContentDigest, Files: []policy.File{{Path: ".", SHA256: digest(b)}}}
}

// copied is the content of a copy for one container; nil for the pod's /dev/shm.
func (g *generator) copied(c *corev1.Container, img Image, b volume.Bind) (*policy.Content, error) {
	if rest, ok := strings.CutPrefix(b.Source, predict.SubPathsDir+"/"); ok {
		return g.subPath(c, rest)
	}
	switch b.Destination {
	case "/dev/shm":
		return nil, nil
	case "/etc/hostname":
		if names, _ := predict.Marks(g.meta.Hostname); len(names) == 0 {
			return Single([]byte(g.meta.Hostname + "\n")), nil
		}
		return unpinned(), nil
	case "/etc/hosts", "/etc/resolv.conf": // have addresses that only the node knows
		return unpinned(), nil
	}
	if strings.HasPrefix(b.Source, predict.ImageVolumes+"/") {
		return &policy.Content{Rule: policy.ContentDigest, Files: img.Files[b.Destination]}, nil
	}
	return nil, fmt.Errorf("the copy of %s is unknown", b.Source)
}

// subPath is the content of a path within a volume that is copied: rest is VOLUME/CONTAINER/INDEX.
func (g *generator) subPath(c *corev1.Container, rest string) (*policy.Content, error) {
	parts := strings.Split(rest, "/")
	i, err := strconv.Atoi(parts[len(parts)-1])
	if err != nil || i >= len(c.VolumeMounts) {
		return nil, fmt.Errorf("the sub path %s is unknown", rest)
	}
	sub, v := path.Clean(c.VolumeMounts[i].SubPath), g.volume(c.VolumeMounts[i].Name)
	switch v.policy.Content.Rule {
	case policy.ContentUnpinned:
		return unpinned(), nil
	case policy.ContentSigned:
		return nil, fmt.Errorf("volume %s is signed as a whole, and a sub path is a part of it", v.policy.Name)
	}
	out := &policy.Content{Rule: policy.ContentDigest}
	for _, f := range v.policy.Content.Files {
		if f.Path == sub {
			return &policy.Content{Rule: policy.ContentDigest, Files: []policy.File{{Path: ".", SHA256: f.SHA256}}}, nil
		}
		if below, ok := strings.CutPrefix(f.Path, sub+"/"); ok {
			out.Files = append(out.Files, policy.File{Path: below, SHA256: f.SHA256})
		}
	}
	if len(out.Files) == 0 {
		return nil, fmt.Errorf("volume %s has no file %s", v.policy.Name, sub)
	}
	return out, nil
}
