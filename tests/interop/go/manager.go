// This file answers: do the calls of spire-controller-manager get the answers it
// counts on, in the order in which it makes them?
//
// At its start it reads the bundle and mints the certificate of its webhook. Then, again and
// again: it creates and deletes an entry to find out which fields the server keeps, lists all
// entries, deletes, creates and updates those that differ from what it wants, and does the same
// with federation relationships. It uses no mask, and pages and batches of the sizes below.
package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"flag"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	trustdomainv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/trustdomain/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
)

const (
	managerPage    = 200
	managerWrites  = 50
	managerDeletes = 200
	// managerPods are more than one page of entries.
	managerPods = 230
)

// manager is what spire-controller-manager keeps between two rounds.
type manager struct {
	*suite
	bundle *x509.CertPool
	// wanted is what the cluster asks for, by what tells entries apart.
	wanted map[string]*types.Entry
	// federated is the same, by trust domain.
	federated map[string]*types.FederationRelationship
}

func runManagerSuite(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("manager-suite", flag.ContinueOnError)
	readServer := serverFlags(flags)
	socket := flags.String("admin-socket", "", "the server's admin socket")
	if err := flags.Parse(args); err != nil {
		return err
	}
	srv, err := readServer()
	if err != nil {
		return err
	}
	if err := required(flags, "admin-socket"); err != nil {
		return err
	}
	s, err := newSuite(srv, *socket, 0)
	if err != nil {
		return err
	}
	defer s.admin.conn.Close()
	m := &manager{suite: s, wanted: map[string]*types.Entry{}, federated: map[string]*types.FederationRelationship{}}
	m.run(ctx)
	return s.close(ctx)
}

func (m *manager) run(ctx context.Context) {
	m.webhookChecks(ctx)
	m.probeChecks(ctx)
	m.check(ctx, "federation-is-created", func(c *check) {
		for _, name := range []string{"one", "two"} {
			m.federate(c, m.foreignName(name))
		}
		created, updated, deleted := m.reconcileFederation(c)
		equal(c, "created, updated, deleted", fmt.Sprint(created, updated, deleted), "2 0 0")
	})
	m.check(ctx, "entries-are-created", func(c *check) {
		for i := range managerPods {
			m.want(m.pod(fmt.Sprintf("pod-%d", i)))
		}
		m.want(m.static())
		created, updated, deleted := m.reconcile(c)
		equal(c, "created, updated, deleted", fmt.Sprint(created, updated, deleted), fmt.Sprint(managerPods+1, 0, 0))
	})
	m.check(ctx, "a-second-round-changes-nothing", func(c *check) {
		created, updated, deleted := m.reconcile(c)
		equal(c, "entries created, updated, deleted", fmt.Sprint(created, updated, deleted), "0 0 0")
		created, updated, deleted = m.reconcileFederation(c)
		equal(c, "relationships created, updated, deleted", fmt.Sprint(created, updated, deleted), "0 0 0")
	})
	m.check(ctx, "entries-are-updated-and-deleted", func(c *check) {
		for i := range managerPods {
			pod := m.pod(fmt.Sprintf("pod-%d", i))
			switch {
			case i < 210: // more than one batch of deletions
				delete(m.wanted, keyOf(pod))
			default:
				pod.DnsNames = []string{"renamed.example.org"}
				pod.FederatesWith = []string{m.foreignName("one")}
				m.want(pod)
			}
		}
		m.want(m.pod("late"))
		created, updated, deleted := m.reconcile(c)
		equal(c, "created, updated, deleted", fmt.Sprint(created, updated, deleted), "1 20 210")
	})
	m.check(ctx, "an-entry-of-somebody-else-is-found-and-kept-by-id", func(c *check) {
		other := m.pod("taken-over")
		other.Hint = "somebody else's"
		stored := m.create(c, other)[0]
		m.want(m.pod("taken-over"))
		created, updated, deleted := m.reconcile(c)
		equal(c, "created, updated, deleted", fmt.Sprint(created, updated, deleted), "0 1 0")
		got, err := m.admin.entries.GetEntry(c.ctx, &entryv1.GetEntryRequest{Id: stored.GetId()})
		c.ok(err, "get")
		equal(c, "hint", got.GetHint(), "")
	})
	m.check(ctx, "creating-what-exists-says-so-by-position", func(c *check) {
		twice := m.pod("late")
		statuses := m.createAll(c, []*types.Entry{twice, m.pod("fresh")})
		equal(c, "codes", fmt.Sprint(statuses), fmt.Sprint([]codes.Code{codes.AlreadyExists, codes.OK}))
		m.want(m.pod("fresh"))
	})
	m.check(ctx, "federation-is-updated-and-deleted", func(c *check) {
		one := m.federated[m.foreignName("one")]
		one.BundleEndpointUrl = "https://127.0.0.1:1/another"
		one.BundleEndpointProfile = &types.FederationRelationship_HttpsWeb{HttpsWeb: &types.HTTPSWebProfile{}}
		delete(m.federated, m.foreignName("two"))
		m.federate(c, m.foreignName("three"))
		created, updated, deleted := m.reconcileFederation(c)
		equal(c, "created, updated, deleted", fmt.Sprint(created, updated, deleted), "1 1 1")
	})
	m.check(ctx, "everything-goes", func(c *check) {
		clear(m.wanted)
		clear(m.federated)
		_, _, deleted := m.reconcile(c)
		equal(c, "entries deleted", deleted, 24)
		_, _, deleted = m.reconcileFederation(c)
		equal(c, "relationships deleted", deleted, 2)
	})
}

// webhookChecks are its start: the bundle for the API server, and a certificate for the webhook.
func (m *manager) webhookChecks(ctx context.Context) {
	names := []string{"spire-controller-manager-webhook.spire.svc"}
	mint := func(c *check, names []string) *x509.Certificate {
		key := mustKey(c)
		id := spiffeid.RequireFromPath(m.server.domain, "/spire-controller-manager-webhook")
		csr, err := newNamedCSR(key, id, names)
		c.ok(err, "make certificate request")
		response, err := m.admin.svids.MintX509SVID(c.ctx, &svidv1.MintX509SVIDRequest{Csr: csr, Ttl: int32((24 * time.Hour).Seconds())})
		c.ok(err, "mint")
		equal(c, "announced ID", idString(response.GetSvid().GetId()), id.String())
		chain, err := parseChain(response.GetSvid())
		c.ok(err, "parse chain")
		return chain[0]
	}
	m.check(ctx, "webhook-bundle", func(c *check) {
		bundle, err := m.admin.bundles.GetBundle(c.ctx, &bundlev1.GetBundleRequest{})
		c.ok(err, "get bundle")
		m.bundle = x509.NewCertPool()
		for _, authority := range bundle.GetX509Authorities() {
			cert, err := x509.ParseCertificate(authority.GetAsn1())
			c.ok(err, "parse authority")
			// It hands them to the API server as PEM.
			text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
			c.that(m.bundle.AppendCertsFromPEM(text), "no PEM: %s", text)
		}
		c.that(len(bundle.GetX509Authorities()) > 0, "the bundle has no X.509 authority")
	})
	m.check(ctx, "webhook-certificate-is-one-the-api-server-takes", func(c *check) {
		needs(c, m.bundle)
		leaf := mint(c, names)
		_, err := leaf.Verify(x509.VerifyOptions{DNSName: names[0], Roots: m.bundle, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
		c.ok(err, "verify as a server of that name")
		c.that(leaf.NotAfter.After(time.Now().Add(time.Hour)), "it ends at %s", leaf.NotAfter)
	})
	m.check(ctx, "webhook-certificate-is-minted-again-for-another-name", func(c *check) {
		needs(c, m.bundle)
		leaf := mint(c, append(names, "other.spire.svc"))
		equal(c, "DNS names", fmt.Sprint(leaf.DNSNames), fmt.Sprint(append(names, "other.spire.svc")))
	})
}

// probeChecks find out which fields the server keeps, also where the entry was left by a round that was cut short.
func (m *manager) probeChecks(ctx context.Context) {
	id := &types.SPIFFEID{TrustDomain: m.server.domain.Name(), Path: "/spire-controller-manager/unsupported-fields-test"}
	probe := func() *types.Entry {
		return &types.Entry{
			ParentId: id, SpiffeId: id, Selectors: []*types.Selector{{Type: "a", Value: "1"}},
			X509SvidTtl: 60, JwtSvidTtl: 60, StoreSvid: true, Hint: "hint",
		}
	}
	ask := func(c *check, want codes.Code) {
		response, err := m.admin.entries.BatchCreateEntry(c.ctx, &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{probe()}})
		result, err := only(response.GetResults(), err)
		c.ok(err, "create")
		c.status(result.GetStatus(), want, "create")
		kept := result.GetEntry()
		c.that(kept.GetJwtSvidTtl() == 60 && kept.GetHint() == "hint" && kept.GetStoreSvid(), "fields are not kept: %v", kept)
		deleted, err := m.admin.entries.BatchDeleteEntry(c.ctx, &entryv1.BatchDeleteEntryRequest{Ids: []string{kept.GetId()}})
		c.ok(err, "delete")
		positions(c, "delete", deleted.GetResults(), codes.OK)
	}
	m.check(ctx, "probe-finds-every-field-supported", func(c *check) { ask(c, codes.OK) })
	m.check(ctx, "probe-that-was-cut-short-is-made-again", func(c *check) {
		m.create(c, probe())
		ask(c, codes.AlreadyExists)
		ask(c, codes.OK)
	})
}

// pod is the entry of a pod, below the node it runs on.
func (m *manager) pod(name string) *types.Entry {
	return &types.Entry{
		ParentId: protoID(m.path("node")), SpiffeId: protoID(m.path("ns/default/sa/" + name)),
		Selectors:   []*types.Selector{{Type: "k8s", Value: "pod-uid:" + name}},
		X509SvidTtl: 3600, DnsNames: []string{name + ".default.svc"},
	}
}

// static is an entry as a ClusterStaticEntry has it.
func (m *manager) static() *types.Entry {
	return &types.Entry{
		ParentId: protoID(m.server.id()), SpiffeId: protoID(m.path("nested")), Selectors: []*types.Selector{{Type: "k8s_psat", Value: "cluster:" + m.mark}},
		X509SvidTtl: 600, JwtSvidTtl: 60, Downstream: true, Admin: true, Hint: "static", FederatesWith: []string{m.foreignName("one")},
	}
}

func (m *manager) want(entry *types.Entry) { m.wanted[keyOf(entry)] = entry }

// keyOf is what makes two entries the same to it, and to SPIRE: parent, SPIFFE ID and selectors.
func keyOf(entry *types.Entry) string {
	selectors := slices.Clone(entry.GetSelectors())
	slices.SortFunc(selectors, compareSelectors)
	key := idString(entry.GetParentId()) + " " + idString(entry.GetSpiffeId())
	for _, selector := range selectors {
		key += " " + selector.GetType() + ":" + selector.GetValue()
	}
	return key
}

// outdated says whether what is there differs in a field that it sets.
func outdated(want, have *types.Entry) bool {
	sorted := func(texts []string) []string { return slices.Sorted(slices.Values(texts)) }
	return want.GetX509SvidTtl() != have.GetX509SvidTtl() || want.GetJwtSvidTtl() != have.GetJwtSvidTtl() ||
		want.GetAdmin() != have.GetAdmin() || want.GetDownstream() != have.GetDownstream() || want.GetHint() != have.GetHint() ||
		want.GetStoreSvid() != have.GetStoreSvid() || !slices.Equal(want.GetDnsNames(), have.GetDnsNames()) ||
		!slices.Equal(sorted(want.GetFederatesWith()), sorted(have.GetFederatesWith()))
}

// reconcile is one round over entries: list, delete, create, update.
func (m *manager) reconcile(c *check) (created, updated, deleted int) {
	current := map[string]*types.Entry{}
	for token := ""; ; {
		page, err := m.admin.entries.ListEntries(c.ctx, &entryv1.ListEntriesRequest{PageSize: managerPage, PageToken: token})
		c.ok(err, "list entries")
		for _, entry := range page.GetEntries() {
			// Others may use this server; it does not look at what is not its own.
			if strings.Contains(idString(entry.GetSpiffeId()), m.mark) {
				current[keyOf(entry)] = entry
			}
		}
		if token = page.GetNextPageToken(); token == "" {
			break
		}
	}
	var toCreate, toUpdate []*types.Entry
	for key, entry := range m.wanted {
		have, there := current[key]
		delete(current, key)
		entry = proto.CloneOf(entry)
		if !there {
			toCreate = append(toCreate, entry)
		} else if outdated(entry, have) {
			entry.Id = have.GetId()
			toUpdate = append(toUpdate, entry)
		}
	}
	var toDelete []string
	for _, entry := range current {
		toDelete = append(toDelete, entry.GetId())
	}
	for batch := range slices.Chunk(toDelete, managerDeletes) {
		response, err := m.admin.entries.BatchDeleteEntry(c.ctx, &entryv1.BatchDeleteEntryRequest{Ids: batch})
		c.ok(err, "delete entries")
		equal(c, "results", len(response.GetResults()), len(batch))
		for _, result := range response.GetResults() {
			c.status(result.GetStatus(), codes.OK, "delete")
			deleted++
		}
	}
	for _, code := range m.createAll(c, toCreate) {
		equal(c, "status of a create", code, codes.OK)
		created++
	}
	for batch := range slices.Chunk(toUpdate, managerWrites) {
		response, err := m.admin.entries.BatchUpdateEntry(c.ctx, &entryv1.BatchUpdateEntryRequest{Entries: batch})
		c.ok(err, "update entries")
		equal(c, "results", len(response.GetResults()), len(batch))
		for _, result := range response.GetResults() {
			c.status(result.GetStatus(), codes.OK, "update")
			updated++
		}
	}
	return created, updated, deleted
}

func (m *manager) createAll(c *check, entries []*types.Entry) []codes.Code {
	var statuses []codes.Code
	for batch := range slices.Chunk(entries, managerWrites) {
		response, err := m.admin.entries.BatchCreateEntry(c.ctx, &entryv1.BatchCreateEntryRequest{Entries: batch})
		c.ok(err, "create entries")
		equal(c, "results", len(response.GetResults()), len(batch))
		for _, result := range response.GetResults() {
			statuses = append(statuses, codes.Code(result.GetStatus().GetCode()))
			m.created = append(m.created, result.GetEntry().GetId())
		}
	}
	return statuses
}

// federate wants a relationship with a trust domain whose bundle it knows.
func (m *manager) federate(c *check, name string) {
	foreign, err := newForeignDomain(name)
	c.ok(err, "make a trust domain")
	m.federated[name] = foreign.relationship(foreign.protoBundle())
}

// reconcileFederation is one round over relationships: list, delete, create, update.
func (m *manager) reconcileFederation(c *check) (created, updated, deleted int) {
	current := map[string]*types.FederationRelationship{}
	for token := ""; ; {
		page, err := m.admin.trustDomains.ListFederationRelationships(c.ctx, &trustdomainv1.ListFederationRelationshipsRequest{PageSize: managerPage, PageToken: token})
		c.ok(err, "list relationships")
		for _, one := range page.GetFederationRelationships() {
			current[one.GetTrustDomain()] = one
		}
		if token = page.GetNextPageToken(); token == "" {
			break
		}
	}
	var toCreate, toUpdate []*types.FederationRelationship
	for name, one := range m.federated {
		have, there := current[name]
		delete(current, name)
		if !there {
			toCreate = append(toCreate, one)
		} else if !sameRelationship(one, have) {
			toUpdate = append(toUpdate, one)
		}
	}
	toDelete := slices.Collect(func(yield func(string) bool) {
		for name := range current {
			if !yield(name) {
				return
			}
		}
	})
	if len(toDelete) > 0 {
		response, err := m.admin.trustDomains.BatchDeleteFederationRelationship(c.ctx, &trustdomainv1.BatchDeleteFederationRelationshipRequest{TrustDomains: toDelete})
		c.ok(err, "delete relationships")
		for _, result := range response.GetResults() {
			c.status(result.GetStatus(), codes.OK, "delete")
			deleted++
		}
	}
	if len(toCreate) > 0 {
		response, err := m.admin.trustDomains.BatchCreateFederationRelationship(c.ctx, &trustdomainv1.BatchCreateFederationRelationshipRequest{FederationRelationships: toCreate})
		c.ok(err, "create relationships")
		for _, result := range response.GetResults() {
			c.status(result.GetStatus(), codes.OK, "create")
			created++
		}
	}
	if len(toUpdate) > 0 {
		response, err := m.admin.trustDomains.BatchUpdateFederationRelationship(c.ctx, &trustdomainv1.BatchUpdateFederationRelationshipRequest{FederationRelationships: toUpdate})
		c.ok(err, "update relationships")
		for _, result := range response.GetResults() {
			c.status(result.GetStatus(), codes.OK, "update")
			updated++
		}
	}
	return created, updated, deleted
}

// sameRelationship compares what it sets; the bundle lives on at the server.
func sameRelationship(a, b *types.FederationRelationship) bool {
	a, b = proto.CloneOf(a), proto.CloneOf(b)
	a.TrustDomainBundle, b.TrustDomainBundle = nil, nil
	return proto.Equal(a, b)
}
