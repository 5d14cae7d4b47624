"""A monitor of a figure that nobody has ends a fit as soon as the figures are known."""

import pytest
from brightness import Brightness, Letters, evaluations, fit, mmhal, pope, write_files
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from synthalign.callbacks.evaluate import Evaluate

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),  # eight numbers need none
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),  # some tests have none on purpose
    pytest.mark.filterwarnings("ignore:The number of training batches"),  # metrics of an epoch are what counts here
]


@pytest.mark.parametrize("callback", [EarlyStopping, ModelCheckpoint])
@pytest.mark.parametrize("monitor", ["pope/mean/f2", "base/pope/mean/f1"])
def test_a_typo_is_refused_before_the_first_step_with_the_nearest_names(tmp_path, callback, monitor):
    model = Brightness()
    said = rf"^{callback.__name__}: monitor '{monitor}' is not among the figures; the nearest are pope/mean/f1, [^ ]+, "
    with pytest.raises(ValueError, match=said):
        fit(tmp_path, [callback(monitor=monitor), Evaluate(evals=evaluations(tmp_path))], model)
    assert model.losses == []


def test_without_an_evaluation_before_training_it_is_refused_after_the_first(tmp_path):
    model = Brightness()
    with pytest.raises(ValueError, match=r"^ModelCheckpoint: monitor 'captions/chair' .* captions/chair_"):
        fit(
            tmp_path,
            [ModelCheckpoint(monitor="captions/chair"), Evaluate(evals=evaluations(tmp_path), at_start=False)],
            model,
        )
    assert len(model.losses) == 4


def test_figures_of_others_are_not_looked_at(tmp_path):
    stopping = EarlyStopping(monitor="val_loss")
    checkpoint = ModelCheckpoint(dirpath=tmp_path / "best", monitor="loss")
    fit(tmp_path, [stopping, checkpoint, Evaluate(evals=evaluations(tmp_path))], validation=True)


def test_a_monitor_of_answers_that_nobody_judges_is_refused(tmp_path):
    write_files(tmp_path)
    evals = [pope(tmp_path), mmhal(tmp_path, None)]
    with pytest.raises(ValueError, match=r"monitor 'mmhal/score' .*mmhal has none, since nobody judges its answers$"):
        fit(tmp_path, [EarlyStopping(monitor="mmhal/score"), Evaluate(evals=evals)])


def test_a_monitor_whose_judge_failed_is_no_mistake(tmp_path):
    write_files(tmp_path)
    checkpoint = ModelCheckpoint(
        dirpath=tmp_path / "best", monitor="mmhal/score", save_on_train_epoch_end=True, every_n_epochs=9
    )
    callback = Evaluate(evals=[pope(tmp_path), mmhal(tmp_path, Letters(0))], at_start=False)
    fit(tmp_path, [checkpoint, callback])
    assert len(callback.history) == 2
