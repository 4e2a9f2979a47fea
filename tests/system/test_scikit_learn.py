"""scikit-learn's grid search on a cluster, by joblib: it is too large for everybody's environment, hence here."""

from pathlib import Path

import pytest
from joblib import parallel_config
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC

import districomp.joblib_backend
from tests.integration.executorlab import running

pytestmark = pytest.mark.system


@pytest.mark.timeout(180)
def test_a_grid_search_finds_on_the_cluster_what_it_finds_here(tmp_path: Path) -> None:
    data, classes = load_digits(return_X_y=True)
    assert data.nbytes > 64 * 1024, "its calls have arguments that are uploaded"
    search = GridSearchCV(SVC(), {"C": [0.1, 1, 10], "gamma": [0.0005, 0.002]}, cv=3)
    here = search.fit(data, classes).cv_results_["mean_test_score"].tolist()
    with running(tmp_path) as lab, parallel_config(backend="districomp", client=lab.socket):
        there = search.fit(data, classes).cv_results_["mean_test_score"].tolist()
        with lab.client() as client:
            tasks = sum(document.tasks for document in client.jobs())
    assert there == here
    assert tasks == 18, "each of the folds was one call"
    assert districomp.joblib_backend.DistricompBackend.default_n_jobs == -1
